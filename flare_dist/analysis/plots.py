"""Plot partitions, runs and layer densities; matplotlib is the optional extra `plots`."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from flare_dist.analysis.bandwidth import Totals, metric_against_bytes
from flare_dist.analysis.densities import Densities, spread
from flare_dist.analysis.run_logs import RunLog

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_NAMED_CLIENTS = 60  # that a plot has room to name
_NAMED_CLASSES = 26
_LETTERS = 24  # of a name in a plot


class MissingMatplotlibError(ValueError):
    """Report that a plot was asked for and matplotlib is not installed."""


def plot_holdings(counts: Tensor, classes: Sequence[str], groups: Sequence[str], path: Path) -> None:
    """Write a PNG of what clients hold: examples of each class, and below it the share of each class in a client.

    `counts` is int64 [clients, classes]; `groups` are the names of each client's groups, "" if it has none. Raises
    ValueError if matplotlib is not installed or `path` cannot be written.
    """
    clients = len(counts)
    figure = _figure(max(6.0, min(24.0, clients / 5)), 7)
    of_counts, of_shares = figure.subplots(2, 1, sharex=True)
    _stack(of_counts, counts, classes)
    _stack(of_shares, counts.double() / counts.sum(1, keepdim=True).clamp_min(1), classes)
    of_counts.set(ylabel="examples", title="Examples of each class per client")
    of_shares.set(ylabel="share", ylim=(0, 1), xlabel="client", title="Class shares of each client")
    of_shares.xaxis.get_major_locator().set_params(integer=True)
    if clients <= _NAMED_CLIENTS and any(groups):
        names = [_as_text(f"{client} {_cut(name)}".strip()) for client, name in enumerate(groups)]
        of_shares.set_xticks(range(clients), names, rotation=90, fontsize="small")
    if len(classes) <= _NAMED_CLASSES:
        figure.legend(*of_counts.get_legend_handles_labels(), title="class", loc="outside right upper")
    _save(figure, path)


def _stack(axes: Axes, values: Tensor, classes: Sequence[str]) -> None:
    """Draw stacked bars of `values`, [clients, classes], each class as one outline: there may be thousands of both."""
    edges = [client - 0.5 for client in range(len(values) + 1)]
    tops = values.cumsum(1).T.tolist()
    below: list[float] = [0.0] * len(values)
    for place, (name, top) in enumerate(zip(classes, tops)):
        colour = f"C{place}" if len(classes) <= 10 else _spread_colour(place, len(classes))
        band = [*below, *below[-1:]], [*top, *top[-1:]]
        axes.fill_between(edges, *band, step="post", linewidth=0, label=_as_text(_cut(name)), color=colour)
        below = top
    if len(values) <= _NAMED_CLIENTS:  # so that clients can be told apart
        for edge in edges:
            axes.axvline(edge, color="white", linewidth=1)


def _spread_colour(place: int, count: int) -> tuple[float, float, float, float]:
    """Return one of `count` colours that lie far apart from their neighbours."""
    import matplotlib

    spread: tuple[float, float, float, float] = matplotlib.colormaps["turbo"](place % 2 / 2 + place / count / 2)
    return spread


def _cut(name: str) -> str:
    return name if len(name) <= _LETTERS else f"{name[: _LETTERS - 1]}…"


def plot_accuracy_against_bytes(runs: Mapping[str, Sequence[RunLog]], path: Path) -> None:
    """Write a PNG of test accuracy, or the task's best metric, against all bytes sent up, one colour for each label.

    Buffers are included. Runs of one label, e.g. seeds, are drawn thin in the same colour. Raises ValueError if
    matplotlib is not installed or `path` cannot be written.
    """
    figure = _figure(9, 5)
    metrics = " or ".join(dict.fromkeys(log.best[0] for logs in runs.values() for log in logs))
    axes = figure.add_subplot(xlabel="bytes up of all clients, buffers included", xscale="log")
    axes.set_ylabel(f"test {metrics or 'accuracy'}")
    for (label, logs), style in zip(runs.items(), itertools.cycle(["-", "--", ":"])):
        colour = axes.plot([], [], style, label=_as_text(label))[0].get_color()
        for log in logs:
            points = metric_against_bytes(log)
            axes.plot([x for x, _ in points], [y for _, y in points], style, color=colour, linewidth=1)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    _save(figure, path)


def plot_seconds(runs: Sequence[Totals], path: Path) -> None:
    """Write a PNG of the mean seconds of a round: measured, divided by activity, and projected on each link.

    Raises ValueError if matplotlib is not installed or `path` cannot be written.
    """
    links = list(runs[0].projected)
    figure = _figure(max(6.0, 1.5 * len(runs) * (1 + len(links))), 5)
    axes = figure.add_subplot(ylabel="seconds a round", title="Mean round: measured, and projected on links")
    width = 0.8 / (1 + len(links))
    for bar, link in enumerate(["measured", *links]):
        places = [place + bar * width for place in range(len(runs))]
        sums = [run.projected[link] if bar else run.amounts.get("round_seconds", 0.0) for run in runs]
        whole = [total / max(run.rounds, 1) for total, run in zip(sums, runs)]
        axes.bar(places, whole, width * 0.9, label=link if bar else "measured: other", color=f"C{bar + 3}")
        below = [0.0] * len(runs)
        for part, kind in enumerate(() if bar else ("compute", "select", "communication")):
            seconds = [run.amounts.get(f"{kind}_seconds", 0.0) / max(run.rounds, 1) for run in runs]
            axes.bar(places, seconds, width * 0.9, bottom=below, label=f"measured: {kind}", color=f"C{part}")
            below = [low + more for low, more in zip(below, seconds)]
    axes.set_xticks(
        [place + 0.4 - width / 2 for place in range(len(runs))], [_as_text(run.name) for run in runs], rotation=15
    )
    figure.legend(loc="outside lower center", ncols=3, fontsize="small")
    _save(figure, path)


def plot_densities(densities: Densities, path: Path) -> None:
    """Write a PNG of the density of each layer: as stage 1 found it beside the masks now, and over the rounds.

    Raises ValueError if matplotlib is not installed or `path` cannot be written.
    """
    figure = _figure(12, max(4.0, 0.28 * len(densities.layers) + 1))
    of_layers, over_rounds = figure.subplots(1, 2)
    _draw_layers(of_layers, densities)
    _draw_rounds(over_rounds, densities)
    _save(figure, path)


def _draw_layers(axes: Axes, densities: Densities) -> None:
    """Draw a bar for each layer, and on it the range that the clients of stage 1 found."""
    layers = range(len(densities.layers))
    number, last = densities.rounds[-1]
    axes.barh(layers, last, color="C0", label=f"mask of round {number}")
    if densities.sensitivities:
        least, most = spread(list(densities.sensitivities.values()))
        axes.hlines(layers, least, most, color="C1", linewidth=3, label="clients of stage 1, least to most")
    axes.set_yticks(layers, [_as_text(name) for name in densities.layers], fontsize="small")
    axes.invert_yaxis()
    axes.set(xlabel="density", xlim=(0, 1.02), title="Density of each layer")
    axes.legend(fontsize="small")


def _draw_rounds(axes: Axes, densities: Densities) -> None:
    """Draw a line for each layer over the rounds; a legend would hide the lines of more than ten."""
    rounds = [round_ for round_, _ in densities.rounds]
    for place, name in enumerate(densities.layers):
        line = [values[place] for _, values in densities.rounds]
        axes.plot(rounds, line, label=_as_text(name), color=f"C{place % 10}", alpha=0.8)
    axes.set(xlabel="round", ylabel="density", yscale="log", title="Over the rounds")
    axes.grid(alpha=0.3)
    if len(densities.layers) <= 10:
        axes.legend(fontsize="small")


def _as_text(label: str) -> str:
    """Escape the dollars of a label, which matplotlib would read as a formula."""
    return label.replace("$", r"\$")


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingMatplotlibError("plots need matplotlib: pip install 'flare_dist[plots]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Figure, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise ValueError(f"output_dir: cannot write {path}: {error.strerror}") from error
