"""Plots of what runs and partitions look like; matplotlib is the optional extra `plots`."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor


def plot_label_table(counts: Tensor, path: Path) -> None:
    """Write a PNG of the clients x labels table `counts` (int64 [clients, labels]) as stacked bars.

    Raises ValueError where matplotlib is not installed or `path` cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("partition: plotting needs matplotlib: pip install 'flare_dist[plots]'") from error
    clients, labels = counts.shape
    figure = Figure(figsize=(max(6.0, min(24.0, clients / 5)), 4), layout="constrained")
    axes = figure.add_subplot(xlabel="client", ylabel="examples", title="Examples of each label per client")
    below = counts.new_zeros(clients)
    for label in range(labels):
        axes.bar(range(clients), counts[:, label].tolist(), bottom=below.tolist(), width=0.9, label=str(label))
        below = below + counts[:, label]
    if labels <= 20:
        figure.legend(title="label", loc="outside right upper")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise ValueError(f"output_dir: cannot write {path}: {error.strerror}") from error
