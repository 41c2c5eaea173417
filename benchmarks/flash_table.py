"""The tables of the study of sparse models, as markdown: accuracy, bytes each way and how far masks differ.

python benchmarks/flash_table.py runs/flash
"""

from __future__ import annotations

import csv
import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

METHODS = ("dense", "pdst", "nst", "spdst", "jmwst", "hetero")
STUDIES = ("mnist_1", "mnist_0.1", "cifar10_1")


def main(directory: Path) -> None:
    for study in STUDIES:
        print(f"\n### {study}\n")
        print(
            "| method | density | lr | test accuracy | MB up | MB down | against dense | mismatch | active at the end |"
        )
        print("|---|---|---|---|---|---|---|---|---|")
        for method in METHODS:
            file = directory / f"{study}_{method}" / "results.csv"
            for density, rows in sorted(_finished(file).items()) if file.exists() else ():
                print(f"| {method} | {density} | {_line(file.parent, rows)} |")


def _finished(file: Path) -> dict[str, list[dict[str, str]]]:
    """The results by density; those of the tuning are left out."""
    points = defaultdict(list)
    with file.open() as lines:
        for row in csv.DictReader(lines):
            if row["purpose"] == "result" and row["status"] == "finished":
                points[row.get("sparse_training.density", "1")].append(row)
    return points


def _line(directory: Path, rows: list[dict[str, str]]) -> str:
    accuracies = [float(row["test_accuracy"]) for row in rows]
    spread = f" ± {stdev(accuracies):.3f}" if len(rows) > 1 else f" ({len(rows)} seed)"
    logs = [_rounds(Path(row["directory"]) if Path(row["directory"]).exists() else directory) for row in rows]
    up, down = (mean(sum(r.get(f"{way}_bytes", 0) for r in log) for log in logs) for way in ("uplink", "downlink"))
    dense = mean(sum(r.get("dense_bytes", 0) for r in log) for log in logs)
    mismatches = [r["mask_mismatch"] for log in logs for r in log if r["round"] and "mask_mismatch" in r]
    active = [log[-1]["active_weights"] for log in logs if "active_weights" in log[-1]]
    cells = [rows[0]["clients.lr"], f"{mean(accuracies):.3f}{spread}", f"{up / 1e6:.1f}", f"{down / 1e6:.1f}"]
    cells += [f"{dense / up:.1f} x", f"{mean(mismatches):.3f}" if mismatches else "-"]
    return " | ".join([*cells, f"{mean(active):,.0f}" if active else "-"])


def _rounds(directory: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
