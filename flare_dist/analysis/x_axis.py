"""What a metric is drawn against: bytes, rounds, measured seconds, or seconds on another link."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from flare_dist.analysis.bandwidth import bytes_up, project_row
from flare_dist.analysis.event_rows import Row
from flare_dist.analysis.links import Link
from flare_dist.analysis.run_logs import RunLog
from flare_dist.errors import unknown_choice
from flare_dist.units import show_bytes, show_seconds

PROJECTED = "projected"
CHOICES = ("uplink", "total", "rounds", "seconds", f"{PROJECTED}:RATE")
BYTES = ("uplink", "total")
TITLES = {
    "uplink": "bytes up of all clients, buffers included",
    "total": "bytes up and down of all clients",
    "rounds": "round",
    "seconds": "seconds of rounds, measured",
}


class Point(NamedTuple):
    """Hold one evaluation of a run."""

    round: int
    x: float
    value: float


@dataclass(frozen=True)
class XAxis:
    """Choose what a metric is drawn against."""

    kind: str = "uplink"  # one of TITLES or PROJECTED
    link: Link | None = None  # of what is projected
    topology: str = "ranks"

    @staticmethod
    def parse(text: str, topology: str = "ranks") -> XAxis:
        """Read --x; ValueError if it is neither a choice nor projected: with a link."""
        kind, _, link = text.partition(":")
        if kind == PROJECTED and link:
            return XAxis(PROJECTED, Link.parse(link, f"--x: {PROJECTED}"), topology)
        if text not in TITLES:
            raise unknown_choice("--x", text, CHOICES)
        return XAxis(text, None, topology)

    @property
    def title(self) -> str:
        """Describe the axis."""
        return TITLES[self.kind] if self.link is None else f"time on a link of {self.link.text}"

    @property
    def name(self) -> str:
        """Name the axis in the name of a file."""
        return self.kind if self.link is None else f"{self.kind}_{self.link.text.replace('/', '_')}"

    @property
    def unit(self) -> str:
        """Return the unit of the amounts; empty for rounds."""
        if self.kind == "rounds":
            return ""
        return "B" if self.kind in BYTES else "s"

    @property
    def show(self) -> Callable[[float], str]:
        """Return the function that writes an amount with its unit."""
        if self.kind == "rounds":
            return "{:g}".format
        return show_bytes if self.kind in BYTES else show_seconds

    @property
    def may_be_logarithmic(self) -> bool:
        """Tell whether amounts may differ by powers of ten."""
        return self.kind != "rounds"

    def amount(self, run: RunLog, row: Row) -> float:
        """Return what one row of a run adds; ValueError if its log lacks what a projection needs."""
        if self.link is not None:
            return project_row(run, row, self.link, self.topology)
        if self.kind == "seconds":
            return float(row.get("round_seconds", 0.0))
        up = bytes_up([row])
        return up + row.get("downlink_bytes", 0) if self.kind == "total" else up

    def points(self, run: RunLog) -> list[Point]:
        """List the evaluations of the run's best metric on the test set, with what had been spent until then."""
        key = f"test_{run.best[0]}"
        if self.kind == "rounds":
            spent: list[float] = [row["round"] for row in run.rows]
        else:
            spent = list(itertools.accumulate(self.amount(run, row) for row in run.rows))
        return [Point(row["round"], x, float(row[key])) for x, row in zip(spent, run.rows) if key in row]
