"""Plots of what runs and partitions look like; matplotlib is the optional extra `plots`."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_label_table(counts: Tensor, path: Path) -> None:
    """Write a PNG of the clients x labels table `counts` (int64 [clients, labels]) as stacked bars.

    Raises ValueError where matplotlib is not installed or `path` cannot be written.
    """
    clients, labels = counts.shape
    figure = _figure(max(6.0, min(24.0, clients / 5)), 4)
    axes = figure.add_subplot(xlabel="client", ylabel="examples", title="Examples of each label per client")
    below = counts.new_zeros(clients)
    for label in range(labels):
        axes.bar(range(clients), counts[:, label].tolist(), bottom=below.tolist(), width=0.9, label=str(label))
        below = below + counts[:, label]
    if labels <= 20:
        figure.legend(title="label", loc="outside right upper")
    _save(figure, path)


def plot_accuracy_against_bytes(runs: Mapping[str, Sequence[Path]], path: Path) -> None:
    """Write a PNG of test accuracy against cumulative uplink bytes, one colour for each label.

    `runs` maps a label to run directories that hold a metrics.jsonl; those of one label, e.g. seeds, are drawn thin
    in the same colour. Raises ValueError where matplotlib is not installed or `path` cannot be written.
    """
    figure = _figure(9, 5)
    axes = figure.add_subplot(xlabel="uplink bytes of all clients", ylabel="test accuracy", xscale="log")
    for (label, directories), style in zip(runs.items(), itertools.cycle(["-", "--", ":"])):
        colour = axes.plot([], [], style, label=label)[0].get_color()
        for directory in directories:
            rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
            sent = list(itertools.accumulate(row.get("uplink_bytes", 0) for row in rows))
            points = [(x, row["test_accuracy"]) for x, row in zip(sent, rows) if x and "test_accuracy" in row]
            axes.plot(*zip(*points), style, color=colour, linewidth=1)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    _save(figure, path)


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("plots need matplotlib: pip install 'flare_dist[plots]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Figure, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise ValueError(f"output_dir: cannot write {path}: {error.strerror}") from error
