"""The settings of a sweep as tables and plots have them, from the rows of results.csv."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flare_dist.analysis.means import Setting
from flare_dist.analysis.run_logs import read_run
from flare_dist.analysis.seed_groups import Group, label_of
from flare_dist.records.summary import bytes_up
from flare_dist.studies.sweep_results import best_of, by_point

Row = dict[str, Any]
TECHNIQUE = "technique"  # names a setting of compare by itself


def settings_of(rows: Sequence[Row], keys: Sequence[str]) -> list[Setting]:
    """Gather the results of each setting of `keys`; runs that diverged only count."""
    points = by_point(rows, keys)
    metric, _ = best_of(rows)
    return [
        Setting(label, values, _amounts(runs, metric), len(runs))
        for (label, values), runs in zip(_named(points, keys), points)
    ]


def finished_groups(rows: Sequence[Row], keys: Sequence[str]) -> list[Group]:
    """Read the logs of the finished runs of each setting; settings without one are left out."""
    points = by_point(rows, keys)
    groups = []
    for (label, values), runs in zip(_named(points, keys), points):
        finished = [read_run(Path(row["directory"]), {}) for row in runs if row["status"] == "finished"]
        groups += [Group(label, finished, values)] if finished else []
    return groups


def _named(points: Sequence[Sequence[Row]], keys: Sequence[str]) -> list[tuple[str, Mapping[str, str]]]:
    """Name each setting by the values of the keys in which they differ, or by its technique."""
    differing = [key for key in keys if len({runs[0][key] for runs in points}) > 1]
    named: list[tuple[str, Mapping[str, str]]] = []
    for runs in points:
        values = {key: str(runs[0][key]) for key in differing}
        label = values.get(TECHNIQUE) or label_of(values) or "as configured"
        named.append((label, values))
    return named


def _amounts(runs: Sequence[Row], metric: str) -> dict[str, list[float]]:
    """List the values of each column, one for each run that has one."""
    columns = {
        f"validation_{metric}": [row.get(f"validation_{metric}") for row in runs],
        f"test_{metric}": [row.get(f"test_{metric}") for row in runs],
        "bytes_up": [None if row["uplink_bytes"] is None else bytes_up(row) for row in runs],
        "bytes_down": [row.get("downlink_bytes") for row in runs],
        "seconds": [row["seconds"] for row in runs],
    }
    return {name: [float(value) for value in values if value is not None] for name, values in columns.items()}
