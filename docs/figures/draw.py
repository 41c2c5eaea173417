"""Draw the figures of the site and the README from the csv files beside this script.

    python docs/figures/draw.py [DIRECTORY]     # by default here

Their numbers are those of the tables in docs/results/, which a test compares.
"""

from __future__ import annotations

import csv
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
# Okabe and Ito's colours, which people who see fewer colours tell apart; markers differ as well.
COLOURS = {
    "dense": "#000000",
    "EC": "#0072B2",
    "EF21": "#009E73",
    "DGC": "#E69F00",
    "FLARE": "#D55E00",
    "sparse": "#D55E00",
}
MARKERS = {"dense": "s", "EC": "o", "EF21": "^", "DGC": "D", "FLARE": "v", "sparse": "o"}
STYLE: dict[Any, Any] = {
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "svg.fonttype": "none",
    "svg.hashsalt": "flare_dist",
}


def read(name: str) -> list[dict[str, str]]:
    with (HERE / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def quickstart(axes: Any) -> None:
    """Show accuracy against bytes of the quickstart, dense and with 1 % of the entries."""
    for name, rows in groupby(read("quickstart"), key=lambda row: row["updates"]):
        points = [(float(row["bytes_up"]) / 1e6, float(row["test_accuracy"])) for row in rows]
        axes.plot(*zip(*points), label={"dense": "dense", "sparse": "1 % of the entries"}[name], color=COLOURS[name])
    axes.set(xscale="log", xlabel="MB up", ylabel="test accuracy")
    axes.legend(frameon=False)


def frontier(axes: Any) -> None:
    """Show accuracy on MNIST against density; a band is one deviation of three seeds."""
    for name, rows in groupby(read("frontier"), key=lambda row: row["method"]):
        points = [[float(row[key]) for key in ("density", "accuracy", "deviation")] for row in rows]
        densities, means, deviations = (list(column) for column in zip(*points))
        if name == "dense":
            axes.axhline(means[0], color=COLOURS[name], linestyle=":", label="dense")
            continue
        low = [mean - deviation for mean, deviation in zip(means, deviations)]
        high = [mean + deviation for mean, deviation in zip(means, deviations)]
        axes.plot(densities, means, label=name, color=COLOURS[name], marker=MARKERS[name])
        axes.fill_between(densities, low, high, color=COLOURS[name], alpha=0.15, linewidth=0)
    axes.set(xscale="log", xlabel="density: fraction of the entries that is sent", ylabel="test accuracy")
    axes.invert_xaxis()
    axes.legend(frameon=False)


def sent(axes: Any) -> None:
    """Show the bytes of five settings, dense and sparse, with the figure that each ended at."""
    rows = read("bytes")[::-1]
    for place, row in enumerate(rows):
        ends = [float(row["sparse_mb"]), float(row["dense_mb"])]
        axes.plot(ends, [place, place], color="#999999", linewidth=2, zorder=1)
        for name, end in zip(("sparse", "dense"), ends):
            axes.scatter(
                end, place, color=COLOURS[name], marker=MARKERS[name], zorder=2, label=name if not place else None
            )
            axes.annotate(row[name], (end, place), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=9)
        axes.text(
            0.0, place + 0.42, f"{row['setting']} ({row['measure']})", transform=axes.get_yaxis_transform(), fontsize=9
        )
    axes.set(xscale="log", xlabel="MB sent", ylim=(-0.5, len(rows) - 0.2), xlim=(1, 60000))
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(axis="y", visible=False)
    axes.legend(frameon=False, loc="lower right")


FIGURES = {"quickstart": (quickstart, (6.4, 3.2)), "frontier": (frontier, (6.4, 3.8)), "bytes": (sent, (7.2, 4.2))}


def main() -> None:
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    with plt.rc_context(STYLE):
        for name, (draw, size) in FIGURES.items():
            figure, axes = plt.subplots(figsize=size, layout="constrained")
            draw(axes)
            figure.savefig(directory / f"{name}.svg", metadata={"Date": None, "Creator": None})
            plt.close(figure)


if __name__ == "__main__":
    main()
