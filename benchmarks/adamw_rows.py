"""The file of the AdamW study: a row for each run that is done."""

from __future__ import annotations

import csv
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Setting:
    """What is compared on a task, at any learning rate."""

    task: str
    way: str
    ranks: int = 2
    density: float = 1.0
    value_codec: str = "fp32"
    beta1: float = 0.9
    beta2: float = 0.99
    settings: str = ""  # more keys of the hook: "scope=global update_clip=inf"
    steps: int = 1000


@dataclass(frozen=True)
class Run:
    """One training run of a setting."""

    setting: Setting
    lr: float
    seed: int


@dataclass(frozen=True)
class Row:
    """A run and what it gave: loss and accuracy on the held-out examples after the last step."""

    run: Run
    loss: float  # inf if it diverged
    accuracy: float
    wire_bytes: float  # a step, over all ranks
    seconds: float
    cpu_seconds: float  # of all ranks together, whatever else the machine was doing
    torch: str


COLUMNS = (*(each.name for each in fields(Setting)), "lr", "seed", *(each.name for each in fields(Row)[1:]))


def read_rows(path: Path) -> list[Row]:
    """Read the runs that are done; a line that was broken off is no run."""
    if not path.exists():
        return []
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
    return [_row(line) for line in csv.DictReader(whole.splitlines())]


def _row(line: dict[str, str]) -> Row:
    setting = Setting(**{each.name: typed(each.type, line[each.name]) for each in fields(Setting)})
    measured = {each.name: typed(each.type, line[each.name]) for each in fields(Row)[1:]}
    return Row(Run(setting, float(line["lr"]), int(line["seed"])), **measured)


def append(path: Path, row: Row) -> None:
    """Add a run to the file, at once and whole; what a kill has broken off there goes first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    measured = {each.name: getattr(row, each.name) for each in fields(Row)[1:]}
    line = asdict(row.run.setting) | {"lr": row.run.lr, "seed": row.run.seed} | measured
    with path.open("a+", encoding="utf-8", newline="") as file:
        file.seek(0)
        whole = file.read().rpartition("\n")[0]
        file.truncate(len(whole.encode()) + 1 if whole else 0)
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if not whole:
            writer.writeheader()
        writer.writerow(line)
        file.flush()
        os.fsync(file.fileno())


def typed(kind: Any, value: Any) -> Any:
    """Turn a value of a grid or of the file into what a field holds, whose annotation is text."""
    return {"float": float, "int": int, "str": str}[kind](value)
