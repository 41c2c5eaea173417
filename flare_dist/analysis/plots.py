"""Plot where the time of runs went, and the densities of layers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flare_dist.analysis.bandwidth import Totals
from flare_dist.analysis.densities import Densities, spread
from flare_dist.analysis.figure_style import PALETTE, Look, escape_dollars, figure_at, limit_ticks, show_ticks
from flare_dist.units import show_seconds

if TYPE_CHECKING:
    from flare_dist.analysis.figure_style import Axes

ACTIVITIES = {"compute": PALETTE[0], "select": PALETTE[1], "communication": PALETTE[2], "other": PALETTE[3]}
_NAMED_LAYERS = 10  # that a legend has room for


def seconds_of_a_round(run: Totals) -> dict[str, float]:
    """Divide the mean measured seconds of a round by activity; the rest is `other`."""
    rounds = max(run.rounds, 1)
    parts = {kind: run.amounts.get(f"{kind}_seconds", 0.0) / rounds for kind in ACTIVITIES if kind != "other"}
    whole = run.amounts.get("round_seconds", 0.0) / rounds
    return parts | {"other": max(0.0, whole - sum(parts.values()))}


def plot_seconds(runs: Sequence[Totals], look: Look, stem: Path) -> list[Path]:
    """Draw the mean seconds of a round: measured, divided by activity, and projected on each link; returns the paths.

    Raises ValueError if matplotlib is not installed or a file cannot be written.
    """
    links = list(runs[0].projected)
    bars = [(run, link) for run in runs for link in ("measured", *links)]
    with figure_at(stem, look, 1.0 + 0.19 * (len(bars) + len(runs))) as figure:
        axes = figure.add_subplot(xlabel="mean seconds of a round")
        axes.grid(True, axis="x")
        show_ticks(axes.xaxis, show_seconds)
        limit_ticks(axes.xaxis, 5)
        places = [place + place // (1 + len(links)) for place in range(len(bars))]
        for place, (run, link) in zip(places, bars):
            _draw_round(axes, place, run, link)
        axes.set_yticks(places, [link for _, link in bars])
        for number, run in enumerate(runs):
            top = number * (2 + len(links)) - 0.55
            axes.text(
                0.0, top, look.lines(run.name)[0], transform=axes.get_yaxis_transform(), fontsize=7, weight="bold"
            )
        axes.set_ylim(places[-1] + 0.7, -1.4)
        handles, labels = axes.get_legend_handles_labels()
        known = dict(zip(labels, handles))
        figure.legend(known.values(), known.keys(), loc="outside lower center", ncols=3)
    return look.paths(stem)


def _draw_round(axes: Axes, place: float, run: Totals, link: str) -> None:
    """Draw one bar: of what was measured by activity, of a link as a whole."""
    if link != "measured":
        axes.barh(place, run.projected[link] / max(run.rounds, 1), color=PALETTE[4], label="projected")
        return
    left = 0.0
    for kind, seconds in seconds_of_a_round(run).items():
        axes.barh(place, seconds, left=left, color=ACTIVITIES[kind], label=kind)
        left += seconds


def plot_densities(densities: Densities, look: Look, stem: Path) -> list[Path]:
    """Draw the density of each layer: as stage 1 found it beside the masks now, and over the rounds.

    Returns the paths. Raises ValueError if matplotlib is not installed or a file cannot be written.
    """
    side_by_side = look.size == "page"
    layers = max(2.4, 0.14 * len(densities.layers) + 1)
    with figure_at(stem, look, layers if side_by_side else layers + 2.2) as figure:
        rows = figure.add_gridspec(1, 2) if side_by_side else figure.add_gridspec(2, 1, height_ratios=[layers, 2.2])
        of_layers = figure.add_subplot(rows[0])
        over_rounds = figure.add_subplot(rows[1])
        _draw_layers(of_layers, densities)
        _draw_rounds(over_rounds, densities)
    return look.paths(stem)


def _draw_layers(axes: Axes, densities: Densities) -> None:
    """Draw a bar for each layer, and on it the range that the clients of stage 1 found."""
    layers = range(len(densities.layers))
    number, last = densities.rounds[-1]
    axes.barh(layers, last, color=PALETTE[0], label=f"mask of round {number}")
    if densities.sensitivities:
        least, most = spread(list(densities.sensitivities.values()))
        axes.hlines(layers, least, most, color=PALETTE[2], linewidth=2, label="clients of stage 1, least to most")
    axes.set_yticks(layers, [escape_dollars(name) for name in densities.layers])
    axes.invert_yaxis()
    axes.set(xlabel="density of each layer", xlim=(0, 1.02))
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0))


def _draw_rounds(axes: Axes, densities: Densities) -> None:
    """Draw a line for each layer over the rounds; a legend would hide the lines of more than ten."""
    rounds = [round_ for round_, _ in densities.rounds]
    for place, name in enumerate(densities.layers):
        line = [values[place] for _, values in densities.rounds]
        axes.plot(rounds, line, label=escape_dollars(name), color=PALETTE[place % len(PALETTE)])
    axes.set(xlabel="round", ylabel="density", yscale="log")
    axes.grid(True)
    limit_ticks(axes.xaxis, whole=True)
    if len(densities.layers) <= _NAMED_LAYERS:
        axes.legend()
