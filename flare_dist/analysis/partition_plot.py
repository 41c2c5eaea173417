"""Plot what clients hold: a few clients by name, thousands in the order of what they hold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from flare_dist.analysis.figure_style import PALETTE, Look, escape_dollars, figure_at, limit_ticks

if TYPE_CHECKING:
    from flare_dist.analysis.figure_style import Axes, Figure

NAMED_CLIENTS = {"column": 30, "page": 60}  # that a figure has room to name
_NAMED_CLASSES = 26  # that a map has room to name
_LETTERS = 24  # of a name


def plot_holdings(
    counts: Tensor, classes: Sequence[str], groups: Sequence[str], look: Look, stem: Path, counted: str = "examples"
) -> list[Path]:
    """Draw what clients hold: how much, and below it the share of each class; returns the paths.

    `counts` is int64 [clients, classes], of what is `counted`; `groups` are the names of each client's groups, "" if it
    has none. Few clients are bars in their order, many a curve, those that hold most first. Few classes of few clients
    are the colours of stacks; else a map has a row for each class, and many clients are sorted in it by the class that
    they hold most of. Raises ValueError if matplotlib is not installed or a file cannot be written.
    """
    shares = counts.double() / counts.sum(1, keepdim=True).clamp_min(1)
    is_few = len(counts) <= NAMED_CLIENTS[look.size]
    is_stacked = is_few and len(classes) <= len(PALETTE)
    with figure_at(stem, look, 4.5) as figure:
        of_counts, of_shares = figure.subplots(2, 1, sharex=is_few)
        of_counts.set(ylabel=counted)
        limit_ticks(of_counts.yaxis, whole=True)
        if is_stacked:
            _stack(of_counts, counts, classes)
            _stack(of_shares, shares, classes)
            of_shares.set(ylabel="share of each class", ylim=(0, 1))
            _add_legend(figure, of_counts, look)
        else:
            _draw_bars(of_counts, counts.sum(1)) if is_few else _draw_curve(of_counts, counts.sum(1))
            _draw_map(of_shares, shares if is_few else shares[by_dominant_class(shares)], classes)
        of_counts.set_ylim(bottom=0)
        if is_few:
            _name_clients(of_shares, groups)
        else:
            of_shares.set(xlabel="clients by the class that they hold most of")
    return look.paths(stem)


def _name_clients(axes: Axes, groups: Sequence[str]) -> None:
    """Label the clients by their numbers, and by their groups if they have any."""
    axes.set(xlabel="client")
    if any(groups):
        names = [escape_dollars(f"{client} {_cut(name)}".strip()) for client, name in enumerate(groups)]
        axes.set_xticks(range(len(groups)), names, rotation=90)
    else:
        limit_ticks(axes.xaxis, 12, whole=True)


def _draw_bars(axes: Axes, totals: Tensor) -> None:
    """Draw a bar for each client."""
    axes.bar(range(len(totals)), totals.tolist(), width=0.9, color=PALETTE[0])


def _draw_curve(axes: Axes, totals: Tensor) -> None:
    """Draw how much clients hold, those that hold most first."""
    ordered = totals.sort(descending=True).values.tolist()
    axes.fill_between(range(len(ordered)), ordered, step="mid", linewidth=0, color=PALETTE[0])
    least, median, most = (f"{int(value):,}" for value in (totals.min(), totals.median(), totals.max()))
    axes.set(xlim=(-0.5, len(ordered) - 0.5), xlabel=f"{len(ordered):,} clients: {least} to {most}, median {median}")


def _draw_map(axes: Axes, shares: Tensor, classes: Sequence[str]) -> None:
    """Draw the share of each class in each client by its brightness, up to the largest of them."""
    shown = axes.imshow(shares.T.numpy(), aspect="auto", interpolation="nearest", cmap="cividis", vmin=0)
    axes.set(ylabel="class")
    if len(classes) <= _NAMED_CLASSES:
        axes.set_yticks(range(len(classes)), [escape_dollars(_cut(name)) for name in classes])
    axes.figure.colorbar(shown, ax=axes, label="share")


def by_dominant_class(shares: Tensor) -> Tensor:
    """Return the order of clients by the class of which they hold most, and in each class by how much: int64 [n]."""
    most, dominant = shares.max(1)
    order = most.argsort(descending=True, stable=True)
    return order[dominant[order].argsort(stable=True)]


def _stack(axes: Axes, values: Tensor, classes: Sequence[str]) -> None:
    """Draw stacked bars of `values`, [clients, classes], each class as one outline."""
    edges = [client - 0.5 for client in range(len(values) + 1)]
    tops = values.cumsum(1).T.tolist()
    below: list[float] = [0.0] * len(values)
    for place, (name, top) in enumerate(zip(classes, tops)):
        band = [*below, *below[-1:]], [*top, *top[-1:]]
        axes.fill_between(
            edges, *band, step="post", linewidth=0, label=escape_dollars(_cut(name)), color=PALETTE[place]
        )
        below = top
    axes.set_xlim(edges[0], edges[-1])
    for between in edges:
        axes.axvline(between, color="white", linewidth=0.8)


def _add_legend(figure: Figure, axes: Axes, look: Look) -> None:
    """Name the classes beside a wide figure, below a narrow one."""
    handles = axes.get_legend_handles_labels()
    if look.size == "page":
        figure.legend(*handles, title="class", loc="outside right upper")
    else:
        figure.legend(*handles, title="class", loc="outside lower center", ncols=3)


def _cut(name: str) -> str:
    return name if len(name) <= _LETTERS else f"{name[: _LETTERS - 1]}…"
