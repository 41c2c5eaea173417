"""The results of a sweep: results.csv, a line for each run, and its rows by setting."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flare_dist.records.summary import bytes_up
from flare_dist.tasks.task import Best
from flare_dist.units import show_bytes

UNKNOWN: Best = ("accuracy", "max")  # of runs that all diverged, and of older versions


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write `rows` with a header line; a value that a row lacks is left empty."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    temporary = path.with_suffix(".part")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(path)


def describe(row: dict[str, Any]) -> str:
    """Describe one finished or diverged run in a line."""
    name = Path(row["directory"]).name + (" (tuning)" if row["purpose"] == "tuning" else "")
    if row["status"] == "diverged":
        return f"{name}: diverged"
    part = "validation" if row["purpose"] == "tuning" else "test"
    metric, _ = best_of([row])
    return f"{name}: {part} {metric} {row[f'{part}_{metric}']:.4f}, {show_bytes(bytes_up(row))} up"


def best_of(rows: Sequence[dict[str, Any]]) -> Best:
    """Find the metric by which runs are compared, and its better direction; diverged runs have none."""
    return next(((row["metric"], row["better"]) for row in rows if row.get("metric")), UNKNOWN)


def by_point(rows: Sequence[dict[str, Any]], keys: Sequence[str]) -> list[list[dict[str, Any]]]:
    """Group the result rows by their values of `keys`, in order."""
    points: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        if row["purpose"] == "result":
            points.setdefault(tuple(str(row[key]) for key in keys), []).append(row)
    return list(points.values())
