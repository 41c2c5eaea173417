"""Show the results of a sweep: a line for each run, results.csv, and the table at the end."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.table import Table

from flare_dist.records.summary import bytes_up
from flare_dist.tasks.metrics import goodness
from flare_dist.tasks.task import Best
from flare_dist.units import show_bytes


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
    return next(((row["metric"], row["better"]) for row in rows if row.get("metric")), ("accuracy", "max"))


def by_point(rows: list[dict[str, Any]], keys: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Group the result rows by setting of `keys`, under its description."""
    points: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["purpose"] == "result":
            points.setdefault(", ".join(f"{key}={row[key]}" for key in keys) or "as configured", []).append(row)
    return points


def results_table(rows: list[dict[str, Any]], keys: Sequence[str]) -> Table:
    """Tabulate mean and spread over the seeds of every setting; the best on the validation set, if any, is marked."""
    metric, direction = best_of(rows)
    table = Table("setting", "seeds", f"validation {metric}", f"test {metric}", "bytes up", "seconds")
    points = by_point(rows, keys)
    means = {name: _mean([row.get(f"validation_{metric}") for row in runs]) for name, runs in points.items()}
    present = [value for value in means.values() if value is not None]
    best = max(present, key=partial(goodness, (metric, direction)), default=None)
    for name, runs in points.items():
        mark = " *" if best is not None and means[name] == best and len(points) > 1 else ""
        columns = [_spread([row.get(f"{part}_{metric}") for row in runs]) for part in ("validation", "test")]
        sent = _mean([None if row["uplink_bytes"] is None else bytes_up(row) for row in runs])
        seconds = _mean([row["seconds"] for row in runs])
        plain = ["-" if sent is None else show_bytes(sent), "-" if seconds is None else f"{seconds:.4g}"]
        table.add_row(name + mark, str(len(runs)), *columns, *plain)
    if best is not None and len(points) > 1:
        table.caption = f"* best by validation {metric}"
    return table


def _mean(values: list[float | None]) -> float | None:
    """Average the runs; None if one has no value, because it diverged or nothing was held out."""
    present = [value for value in values if value is not None]
    return mean(present) if present and len(present) == len(values) else None


def _spread(values: list[float | None]) -> str:
    """Show mean and standard deviation of the runs that have a value, and how many diverged."""
    present = [value for value in values if value is not None]
    lost = f" ({len(values) - len(present)} diverged)" if 0 < len(present) < len(values) else ""
    if not present:
        return "-"
    return f"{mean(present):.4f}" + (f" ± {stdev(present):.4f}" if len(present) > 1 else "") + lost
