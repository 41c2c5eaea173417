"""The file of the AdamW study: a row for each run that is done."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path

from csv_rows import append_line, fields_of, read_lines


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
    """Read the runs that are done."""
    return [_row(line) for line in read_lines(path)]


def _row(line: dict[str, str]) -> Row:
    setting = Setting(**fields_of(Setting, line))
    measured = fields_of(Row, line, but=("run",))
    return Row(Run(setting, float(line["lr"]), int(line["seed"])), **measured)


def append(path: Path, row: Row) -> None:
    """Add a run to the file."""
    measured = {each.name: getattr(row, each.name) for each in fields(Row)[1:]}
    line = asdict(row.run.setting) | {"lr": row.run.lr, "seed": row.run.seed} | measured
    append_line(path, COLUMNS, line)
