"""The tables of the AdamW study, from the file of its runs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Sequence
from statistics import mean, stdev
from typing import Protocol, TypeVar

from adamw_plan import best_rate
from adamw_rows import Row, Setting
from timing import print_table

HEADER = (
    "way",
    "ranks",
    "density",
    "values",
    "betas",
    "lr",
    "loss",
    "more than dense",
    "accuracy",
    "kB a step",
    "runs",
)
Key = TypeVar("Key", bound=Hashable)


class Measured(Protocol):
    """A run of any study, as its cost needs it."""

    @property
    def cpu_seconds(self) -> float: ...

    @property
    def torch(self) -> str: ...


def print_tables(rows: Sequence[Row], only: Collection[str] | None = None) -> None:
    """Print two tables for each task: results at the best rates, and the losses of all rates on the first seed."""
    shown = [row for row in rows if not only or row.run.setting.task in only]
    for (task, steps), own in divided((row.run.setting.task, row.run.setting.steps) for row in shown).items():
        of_task = [shown[number] for number in own]
        print(f"**{task}**, {steps:,} steps; loss and accuracy on held-out examples after the last one:\n")
        print_table(HEADER, results(of_task))
        print_table(*rates(of_task))
    print_cost(rows)


def print_cost(rows: Sequence[Measured]) -> None:
    """Print below the tables of a study how many runs they are of, and what these took."""
    hours = sum(row.cpu_seconds for row in rows) / 3600
    versions = ", ".join(sorted({row.torch for row in rows}))
    print(f"{len(rows)} runs, {hours:.1f} hours of one core; torch {versions}. * best at the edge of what was tried.")


def results(rows: Sequence[Row]) -> list[list[str]]:
    """Write a line for each setting: the mean over seeds at its best rate, and how far that is from the first dense.

    That is the same on any number of ranks.
    """
    settings = by_setting(rows)
    dense = next((at_best(own) for setting, own in settings.items() if setting.way == "dense"), [])
    return [[*words(setting), *_at_best_in_words(own, dense)] for setting, own in settings.items()]


def _at_best_in_words(rows: Sequence[Row], dense: Sequence[Row]) -> list[str]:
    best = at_best(rows)
    if not best:
        return ["-", "diverged", "-", "-", "-", "0"]
    rate = f"{best[0].run.lr:g}{'' if is_inside(rows) else '*'}"
    losses = [row.loss for row in best]
    more = f"{mean(losses) - mean(row.loss for row in dense):+.3f}" if dense else "-"
    sent = f"{mean(row.wire_bytes for row in best) / 1000:.1f}"
    return [rate, with_spread(losses), more, with_spread([row.accuracy for row in best]), sent, str(len(best))]


def rates(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Write header and lines of the table of all rates: the losses of the first seed."""
    tried = sorted({row.run.lr for row in rows})
    lines = []
    for setting, own in by_setting(rows).items():
        losses = tuning(own)
        numbers = [f"{losses[lr]:.3f}" if lr in losses else "" for lr in tried]
        lines.append([", ".join(words(setting)), *numbers])
    return ["loss at lr", *(f"{rate:g}" for rate in tried)], lines


def divided(keys: Iterable[Key]) -> dict[Key, list[int]]:
    """Divide the numbers 0, 1, ... by their keys, in the order in which these first come."""
    found: dict[Key, list[int]] = defaultdict(list)
    for number, key in enumerate(keys):
        found[key].append(number)
    return found


def by_setting(rows: Sequence[Row]) -> dict[Setting, list[Row]]:
    """Divide runs by setting: dense ones first, fewer ranks first, otherwise in their order."""
    found = {setting: [rows[number] for number in own] for setting, own in divided(r.run.setting for r in rows).items()}
    return dict(sorted(found.items(), key=lambda item: (item[0].way != "dense", item[0].ranks)))


def tuning(rows: Sequence[Row]) -> dict[float, float]:
    """Collect the losses of one setting by rate, of the seed that tuned, which is the first."""
    first = rows[0].run.seed
    return {row.run.lr: row.loss for row in rows if row.run.seed == first}


def at_best(rows: Sequence[Row]) -> list[Row]:
    """Select the runs of one setting at its best rate; none if all diverged."""
    best = best_rate(tuning(rows))
    return [row for row in rows if row.run.lr == best]


def is_inside(rows: Sequence[Row]) -> bool:
    """Tell if rates on both sides of the best were tried."""
    losses = tuning(rows)
    best = best_rate(losses)
    return best is not None and min(losses) < best < max(losses)


def with_spread(values: Sequence[float], digits: int = 3) -> str:
    """Write a mean, with the standard deviation if there are several values."""
    if not math.isfinite(sum(values)):
        return f"finite in {sum(map(math.isfinite, values))} of {len(values)}"
    return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def words(setting: Setting) -> list[str]:
    """Describe a setting in the first columns."""
    way = " ".join(filter(None, (setting.way, setting.settings)))
    return [
        way,
        str(setting.ranks),
        f"{setting.density:g}",
        setting.value_codec,
        f"{setting.beta1:g} {setting.beta2:g}",
    ]
