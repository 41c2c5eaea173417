"""A file of results that survives a kill: a line for each run, added at once and whole.

A row is a dataclass of numbers and words; the fields of a dataclass inside it are columns in its place.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

RowT = TypeVar("RowT")


def read_rows(path: Path, kind: type[RowT]) -> list[RowT]:
    """Read the rows of a file; a line that was broken off is none."""
    if not path.exists():
        return []
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
    return [_row(kind, line) for line in csv.DictReader(whole.splitlines())]


def _row(kind: Any, line: Mapping[str, str]) -> Any:
    hints = get_type_hints(kind)
    return kind(**{name: _row(of, line) if is_dataclass(of) else of(line[name]) for name, of in hints.items()})


def append_row(path: Path, row: Any) -> None:
    """Add a row to the file; what a kill has broken off there goes first."""
    line = dict(_columns(row))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8", newline="") as file:
        file.seek(0)
        whole = file.read().rpartition("\n")[0]
        file.truncate(len(whole.encode()) + 1 if whole else 0)
        writer = csv.DictWriter(file, line, lineterminator="\n")
        if not whole:
            writer.writeheader()
        writer.writerow(line)
        file.flush()
        os.fsync(file.fileno())


def _columns(row: Any) -> Iterator[tuple[str, Any]]:
    for each in fields(row):
        value = getattr(row, each.name)
        if is_dataclass(value):
            yield from _columns(value)
        else:
            yield each.name, value
