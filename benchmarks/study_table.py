"""Print the table of a study, a line for each setting of each sweep: accuracy and bytes over the seeds.

    python benchmarks/study_table.py runs/fedopt/* --target 0.45
    python benchmarks/study_table.py runs/flash/mnist_1_*

With a target, shows the round in which the seeds reached it, on average; for sparse models, how far clients' masks
differ.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from flare_dist.analysis.metrics_file import read_metrics

NOT_SETTINGS = (
    "purpose",
    "seed",
    "status",
    "directory",
    "validation_accuracy",
    "test_accuracy",
    "test_loss",
    "seconds",
)
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("sweeps", type=Path, nargs="+")
    parser.add_argument("--target", type=float)
    options = parser.parse_args()
    points = [(sweep.name, *point) for sweep in options.sweeps for point in finished(sweep / "results.csv")]
    lines = [{"sweep": name, **settings, **measured(rows, options.target)} for name, settings, rows in points]
    columns = list(dict.fromkeys(column for line in lines for column in line))
    settings = {"sweep"}.union(*(point[1] for point in points))
    columns.sort(key=lambda column: column not in settings)  # these come first
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for line in lines:
        print(f"| {' | '.join(str(line.get(column, '-')) for column in columns)} |")


def finished(file: Path) -> list[tuple[Row, list[Row]]]:
    """Collect the settings and the results of each point; runs that only tuned are left out."""
    points = defaultdict(list)
    for row in csv.DictReader(file.read_text().splitlines()) if file.exists() else ():
        if row["purpose"] == "result" and row["status"] == "finished":
            settings = {k: v for k, v in row.items() if k not in NOT_SETTINGS and not k.endswith("_bytes")}
            points[tuple(settings.items())].append(row)
    return [(dict(settings), rows) for settings, rows in sorted(points.items())]


def measured(rows: list[Row], target: float | None) -> Row:
    """Average the seeds of one point into a line of the table."""
    logs = [read_metrics(Path(row["directory"])) for row in rows]
    accuracies = [float(row["test_accuracy"]) for row in rows]
    spread = f" ± {stdev(accuracies):.3f}" if len(rows) > 1 else f" ({len(rows)} seed)"
    up, down, dense, buffers = (
        mean(sum(r.get(f"{k}_bytes", 0) for r in g) for g in logs) for k in ("uplink", "downlink", "dense", "buffer")
    )
    up += buffers  # which travel with either
    dense += buffers
    line = {"test accuracy": f"{mean(accuracies):.3f}{spread}"}
    if target is not None:
        reached = [[r["round"] for r in log if r.get("test_accuracy", 0) >= target] for log in logs]
        line[f"round of {target:g}"] = f"{mean(rounds[0] for rounds in reached):.0f}" if all(reached) else "not by all"
    line |= {"MB up": f"{up / 1e6:.1f}", "MB down": f"{down / 1e6:.1f}", "against dense": f"{dense / up:.1f} x"}
    mismatches = [r["mask_mismatch"] for log in logs for r in log if r["round"] and "mask_mismatch" in r]
    active = [log[-1]["active_weights"] for log in logs if "active_weights" in log[-1]]
    if mismatches:
        line |= {"mismatch": f"{mean(mismatches):.3f}", "active at the end": f"{mean(active):,.0f}"}
    return line


if __name__ == "__main__":
    main()
