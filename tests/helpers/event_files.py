"""Write event files as other trainers do, and read what they add up to."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from flare_dist.analysis.bandwidth import Totals, totals
from flare_dist.analysis.run_logs import RunLog, read_run

START = 1_700_000_000.0
TAGS = {"uplink_bytes": "comm/sent", "wire_bytes": "comm/sent"}
Event = tuple[str, int, float, float]  # (tag, step, value, seconds after START)
numbers = itertools.count()


def write(directory: Path, events: Iterable[Event], **options: Any) -> Path:
    """Write one event file; returns its path."""
    suffix = f".{next(numbers)}"  # names of one second would be the same
    with SummaryWriter(str(directory), filename_suffix=suffix) as writer:
        for tag, step, value, seconds in events:
            writer.add_scalar(tag, value, step, walltime=START + seconds, **options)
    (path,) = directory.glob(f"*tfevents*{suffix}")
    return path


def sent(steps: Iterable[int], begin: float = 0.0, each: float = 1000, seconds: float = 1.0) -> list[Event]:
    """Make the events of bytes that are sent in each of these steps, `seconds` apart."""
    return [("comm/sent", step, each, begin + seconds * step) for step in steps]


def read(directory: Path, target: float | None = None, **tags: str) -> tuple[RunLog, Totals]:
    """Read the log of two ranks in a directory, and add it up."""
    log = read_run(directory, TAGS | tags, ranks=2)
    return log, totals(log, [], "ranks", target)


def amounts(directory: Path) -> tuple[int, float, float]:
    """Add up a log into (rounds, kB, seconds)."""
    found = read(directory)[1]
    assert found.amounts["uplink_bytes"] == found.amounts["wire_bytes"]  # one tag may stand for both
    return found.rounds, found.amounts["uplink_bytes"] / 1000, found.amounts["round_seconds"]
