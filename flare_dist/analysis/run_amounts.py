"""What each run of a setting came to, in the columns of means.csv and of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean

from flare_dist.analysis.bandwidth import Totals, totals
from flare_dist.analysis.links import Link
from flare_dist.analysis.means import Setting
from flare_dist.analysis.run_logs import RunLog
from flare_dist.analysis.seed_groups import Group
from flare_dist.tasks.metrics import goodness


@dataclass(frozen=True)
class Summed:
    """Hold a group of runs with the totals of each."""

    group: Group
    totals: Sequence[Totals]
    target: float | None  # of the metric

    @property
    def setting(self) -> Setting:
        """Gather the columns of all runs."""
        rows = [self.amounts_of(place) for place in range(len(self.totals))]
        columns = dict.fromkeys(column for row in rows for column in row)
        amounts = {column: [row[column] for row in rows if column in row] for column in columns}
        return Setting(self.group.label, self.group.values, amounts, len(rows))

    @property
    def mean(self) -> Totals:
        """Average the totals of all runs, under the label of the group; a target counts if all of them reached it."""
        first = self.totals[0]
        values = [found.value for found in self.totals if found.value is not None]
        reached = [found.target for found in self.totals if found.target is not None]
        return Totals(
            name=self.group.label,
            rounds=round(fmean(found.rounds for found in self.totals)),
            amounts=_means([found.amounts for found in self.totals]),
            projected=_means([found.projected for found in self.totals]),
            metric=first.metric,
            value=fmean(values) if values else None,
            target=_means(reached) if len(reached) == len(self.totals) else None,
        )

    def amounts_of(self, place: int) -> dict[str, float]:
        """List what one of the runs came to, by column; what its log lacks is left out."""
        found = self.totals[place]
        return _amounts(self.group.runs[place], found) | _until(found, self.target)


def sum_up(groups: Sequence[Group], links: Sequence[Link], topology: str, target: float | None) -> list[Summed]:
    """Add up the bytes and seconds of every run; ValueError if a log lacks what a link's projection needs."""
    return [Summed(group, [totals(run, links, topology, target) for run in group.runs], target) for group in groups]


def _means(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Average each value over the runs that have it."""
    keys = dict.fromkeys(key for values in found for key in values)
    return {key: fmean(values[key] for values in found if key in values) for key in keys}


def _amounts(run: RunLog, found: Totals) -> dict[str, float]:
    """List the metric, bytes and seconds of a run."""
    metric, _ = run.best
    key = f"test_{metric}"
    values = [float(row[key]) for row in run.rows if key in row]
    held_out = [float(row[f"validation_{metric}"]) for row in run.rows if f"validation_{metric}" in row]
    amounts: dict[str, float | None] = {
        f"validation_{metric}": held_out[-1] if held_out else None,
        key: found.value,
        f"best_{metric}": max(values, key=partial(goodness, run.best), default=None),
        "rounds": float(found.rounds),
        "bytes_up": found.bytes_up,
        "bytes_down": found.amounts.get("downlink_bytes"),
        "compression": found.compression,
        "seconds": run.rows[-1].get("elapsed_seconds", found.amounts.get("round_seconds")),
        **{f"seconds at {link}": seconds for link, seconds in found.projected.items()},
    }
    return {column: value for column, value in amounts.items() if value is not None}


def _until(found: Totals, target: float | None) -> dict[str, float]:
    """List what the run needed to reach the target; nothing if it did not, or if there is none."""
    names = {"round": "rounds", "bytes_up": "bytes up", "downlink_bytes": "bytes down", "round_seconds": "seconds"}
    until = found.target or {}
    return {f"{names.get(key, f'seconds at {key}')} until {target:g}": value for key, value in until.items()}
