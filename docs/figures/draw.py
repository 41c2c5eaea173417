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

from flare_dist.analysis.figure_style import PALETTE, STYLE, show_ticks, use_log_scale
from flare_dist.units import show_bytes, show_seconds

HERE = Path(__file__).parent
DENSE, SPARSE = PALETTE[8], PALETTE[2]
COLOURS = {"dense": DENSE, "sparse": SPARSE, "EC": PALETTE[0], "EF21": PALETTE[1], "DGC": PALETTE[4], "FLARE": SPARSE}
MARKERS = {"dense": "s", "EC": "o", "EF21": "^", "DGC": "D", "FLARE": "v", "sparse": "o"}
OWN: dict[Any, Any] = {"axes.grid": True, "savefig.facecolor": "white", "svg.fonttype": "none"}
WIDTH = 5.0  # inches: on a telephone the words can still be read


def read(name: str) -> list[dict[str, str]]:
    with (HERE / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def quickstart(axes: Any) -> None:
    """Show accuracy against bytes of the quickstart, dense and with 1 % of the entries."""
    for name, rows in groupby(read("quickstart"), key=lambda row: row["updates"]):
        points = [(float(row["bytes_up"]), float(row["test_accuracy"])) for row in rows]
        axes.plot(*zip(*points), label={"dense": "dense", "sparse": "1 % of the entries"}[name], color=COLOURS[name])
    axes.set(xscale="log", xlabel="bytes up", ylabel="test accuracy")
    show_ticks(axes.xaxis, show_bytes)
    axes.legend()


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
    axes.set(xscale="log", xlabel="density: share of the entries that is sent", ylabel="test accuracy")
    show_ticks(axes.xaxis, lambda density: f"{100 * density:.10g} %")
    axes.invert_xaxis()
    axes.legend()


def sent(axes: Any) -> None:
    """Show the bytes of five settings, dense and sparse, with the figure that each ended at."""
    rows = read("bytes")[::-1]
    for place, row in enumerate(rows):
        ends = [1e6 * float(row["sparse_mb"]), 1e6 * float(row["dense_mb"])]
        axes.plot(ends, [place, place], color=PALETTE[3], linewidth=2, zorder=1)
        for name, end in zip(("sparse", "dense"), ends):
            axes.scatter(
                end, place, color=COLOURS[name], marker=MARKERS[name], zorder=2, label=name if not place else None
            )
            axes.annotate(row[name], (end, place), xytext=(0, 6), textcoords="offset points", ha="center")
        axes.text(0.0, place + 0.46, f"{row['setting']} ({row['measure']})", transform=axes.get_yaxis_transform())
    axes.set(xscale="log", xlabel="bytes sent", ylim=(-0.5, len(rows) - 0.2), xlim=(1e6, 6e10))
    show_ticks(axes.xaxis, show_bytes)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(axis="y", visible=False)
    axes.legend(loc="lower right")


def outer_bytes(axes: Any) -> None:
    """Show the test loss of a GPT against bytes, of outer steps and of exchanges in each step."""
    for row in read("outer"):
        spot(axes, row, float(row["bytes"]), is_full=True)
    axes.set(xscale="log", xlabel="bytes sent in the whole training, all replicas", ylabel="test loss, nats")
    show_ticks(axes.xaxis, show_bytes)
    axes.margins(x=0.2, y=0.15)


def outer_seconds(axes: Any) -> None:
    """Show the same losses against the seconds projected on two links."""
    for link, column, is_full in (("100 Mbit/s", "seconds_at_100mbit", True), ("1 Gbit/s", "seconds_at_1gbit", False)):
        for row in read("outer"):
            spot(axes, row, float(row[column]), is_full)
        fill = DENSE if is_full else "white"
        axes.plot(float(row[column]), float(row["loss"]), "o", color=DENSE, markerfacecolor=fill, label=link, zorder=0)
    axes.set(xlabel="projected time of the whole training", ylabel="test loss, nats")
    use_log_scale(axes, (1, 2, 5))
    show_ticks(axes.xaxis, show_seconds)
    axes.margins(x=0.2, y=0.15)
    axes.legend()


def spot(axes: Any, row: dict[str, str], x: float, is_full: bool) -> None:
    """Draw one setting with its deviation and, at a full marker, its name."""
    colour = METHOD_COLOURS[row["method"]]
    loss = float(row["loss"])
    fill = colour if is_full else "white"
    axes.errorbar(x, loss, float(row["deviation"]), color=colour, marker="o", markerfacecolor=fill, markersize=4)
    if is_full:
        name = row["method"] + (f", H {row['every']}" if row["every"] != "1" else "")
        above = row["every"] != "10"  # names of one method beside each other
        place = (0, 6 if above else -6)
        axes.annotate(
            name, (x, loss), xytext=place, textcoords="offset points", ha="center", va="bottom" if above else "top"
        )


METHOD_COLOURS = {
    "DDP": DENSE,
    "the hook": PALETTE[1],
    "DiLoCo": PALETTE[0],
    "SparseLoCo": SPARSE,
    "MuLoCo": PALETTE[4],
    "local SGD": PALETTE[5],
}
FIGURES = {
    "quickstart": (quickstart, 2.6),
    "frontier": (frontier, 3.0),
    "bytes": (sent, 3.6),
    "outer_bytes": (outer_bytes, 3.0),
    "outer_seconds": (outer_seconds, 3.0),
}


def main() -> None:
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    with plt.rc_context(STYLE | OWN):
        for name, (draw, height) in FIGURES.items():
            figure, axes = plt.subplots(figsize=(WIDTH, height), layout="constrained")
            draw(axes)
            figure.savefig(directory / f"{name}.svg", metadata={"Date": None, "Creator": None})
            plt.close(figure)


if __name__ == "__main__":
    main()
