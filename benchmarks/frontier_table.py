"""Print the tables of the frontier study from its sweeps' results.csv: mean ± deviation of the test accuracy.

python benchmarks/frontier_table.py runs/frontier
"""

from __future__ import annotations

import csv
import itertools
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

METHODS = ("dense", "ec", "ef21", "dgc", "flare", "flare_dgc")
STUDIES = ("mnist_iid", "mnist_dirichlet", "cifar10_dirichlet")


def main(directory: Path) -> None:
    studies: dict[str, dict[tuple[str, str], list[dict[str, str]]]] = defaultdict(lambda: defaultdict(list))
    densities: dict[str, list[str]] = defaultdict(list)
    for study, method in itertools.product(STUDIES, METHODS):
        file = directory / f"{study}_{method}" / "results.csv"
        if file.exists():
            with file.open() as lines:
                for row in csv.DictReader(lines):
                    density = row.get("compression.density", "")
                    if row["purpose"] == "result":
                        studies[study][method, density].append(row)
                    if density and density not in densities[study]:
                        densities[study].append(density)
    for study, results in studies.items():
        columns = sorted(densities[study], key=float, reverse=True)
        print(f"\n### {study}\n\n| method | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
        for method in METHODS:
            if method == "dense":
                print(f"| dense | {_cell(results['dense', ''])}" + " |" * len(columns))
            elif any((method, density) in results for density in columns):
                print(f"| {method} | " + " | ".join(_cell(results[method, density]) for density in columns) + " |")


def _cell(rows: list[dict[str, str]]) -> str:
    """Show the accuracy over the seeds and, in brackets, the values that the search chose."""
    finished = [float(row["test_accuracy"]) for row in rows if row["status"] == "finished"]
    if not finished:
        return "-"
    spread = f" ± {stdev(finished):.3f}" if len(finished) > 1 else ""
    chosen = [rows[0][key] for key in ("clients.lr", "clients.flare.tau") if rows[0].get(key)]
    lost = f", {len(rows) - len(finished)} diverged" if len(finished) < len(rows) else ""
    return f"{mean(finished):.3f}{spread} ({', '.join(chosen)}{lost})"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
