"""A file of results that survives a kill: a line for each run, added at once and whole."""

from __future__ import annotations

import csv
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any


def read_lines(path: Path) -> list[dict[str, str]]:
    """Read the lines of a file; one that was broken off is none."""
    if not path.exists():
        return []
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
    return list(csv.DictReader(whole.splitlines()))


def append_line(path: Path, columns: Sequence[str], line: Mapping[str, Any]) -> None:
    """Add a line to the file; what a kill has broken off there goes first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8", newline="") as file:
        file.seek(0)
        whole = file.read().rpartition("\n")[0]
        file.truncate(len(whole.encode()) + 1 if whole else 0)
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if not whole:
            writer.writeheader()
        writer.writerow(line)
        file.flush()
        os.fsync(file.fileno())


def fields_of(kind: Any, line: Mapping[str, str], but: Collection[str] = ()) -> dict[str, Any]:
    """Read the values of a dataclass's fields, all `but` some, from a line that has them by name."""
    return {each.name: typed(each.type, line[each.name]) for each in fields(kind) if each.name not in but}


def typed(kind: Any, value: Any) -> Any:
    """Turn a value of a grid or of the file into what a field holds, whose annotation is text."""
    return {"float": float, "int": int, "str": str}[kind](value)
