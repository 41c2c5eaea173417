"""Plot the best metric of runs against bytes, rounds or seconds: a mean and a band over the seeds of each setting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from flare_dist.analysis.figure_style import Look, figure_at, limit_ticks, line_styles, show_ticks, use_log_scale
from flare_dist.analysis.seed_groups import Curve, Group, mean_curve
from flare_dist.analysis.x_axis import XAxis
from flare_dist.tasks.task import Best

if TYPE_CHECKING:
    from flare_dist.analysis.figure_style import Axes

_MANY_TIMES = 8  # if one run has spent this many times as much as another, the axis is logarithmic
_FEW_TICKS = 300  # an axis that spans less has ticks between the powers of ten
_LEGEND_INCHES = 0.13  # of a line


def stem_of(groups: Sequence[Group], axis: XAxis) -> str:
    """Name the file of a plot, without its suffix: accuracy_against_uplink."""
    names = "_".join(metric for metric, _ in metrics_of(groups))
    return f"{quote(names, safe='')}_against_{axis.name}"


def metrics_of(groups: Sequence[Group]) -> list[Best]:
    """List the metrics by which the tasks of the groups compare models, each once."""
    return list(dict.fromkeys(run.best for group in groups for run in group.runs))


def plot_curves(groups: Sequence[Group], axis: XAxis, look: Look, directory: Path) -> list[Path]:
    """Draw a line for each group, the mean over its runs, in a band of one standard deviation; returns the paths.

    Raises ValueError if matplotlib is not installed, a file cannot be written or a log lacks what `axis` needs.
    """
    curves = [mean_curve(group.runs, axis) for group in groups]
    shown = [(group, curve) for group, curve in zip(groups, curves) if curve.x]
    stem = directory / stem_of(groups, axis)
    labels = [look.lines(group.label) for group, _ in shown]
    seeds = _seeds_words([group for group, _ in shown])
    lines = sum(map(len, labels)) + 1
    with figure_at(stem, look, look.width * 0.6 + lines * _LEGEND_INCHES) as figure:
        axes = figure.add_subplot(xlabel=axis.title, ylabel=_value_title(groups))
        axes.grid(True)
        least = _set_scale(axes, axis, [curve for _, curve in shown])
        for (_, curve), label, style in zip(shown, labels, line_styles()):
            _draw(axes, curve, least, "\n".join(label), style)
        if len(groups) > 1 or seeds:
            figure.legend(loc="outside lower center", title=seeds)
    return look.paths(stem)


def _value_title(groups: Sequence[Group]) -> str:
    """Name the metrics, and which direction is better if that is down."""
    names = [f"test {metric}" + (" (lower is better)" if way == "min" else "") for metric, way in metrics_of(groups)]
    return " or ".join(names)


def _seeds_words(groups: Sequence[Group]) -> str | None:
    """Say over how many seeds the lines are means; None if each is one run."""
    counts = sorted({len(group.runs) for group in groups})
    if not counts or counts[-1] == 1:
        return None
    return f"mean ± deviation over {' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} seeds"


def is_logarithmic(axis: XAxis, amounts: Sequence[Sequence[float]]) -> bool:
    """Tell whether an axis of these amounts, a list of rising ones for each setting, is logarithmic."""
    ends = [x[-1] for x in amounts if x and x[-1] > 0]
    return axis.may_be_logarithmic and bool(ends) and max(ends) >= _MANY_TIMES * min(ends)


def log_factors(least: float, most: float) -> tuple[float, ...]:
    """Choose which multiples of the powers of ten have a tick."""
    return (1.0,) if most / least > _FEW_TICKS else (1.0, 2.0, 5.0)


def _set_scale(axes: Axes, axis: XAxis, curves: Sequence[Curve]) -> float:
    """Choose the scale of x, and label its ticks; returns the least amount that can be drawn."""
    least = -math.inf
    if is_logarithmic(axis, [curve.x for curve in curves]):
        amounts = [x for curve in curves for x in curve.x if x > 0]
        least = min(amounts)
        use_log_scale(axes, log_factors(least, max(amounts)))
    else:
        limit_ticks(axes.xaxis, whole=axis.kind == "rounds")
    show_ticks(axes.xaxis, axis.show)
    return least


def _draw(axes: Axes, curve: Curve, least: float, label: str, style: tuple[str, str]) -> None:
    """Draw a mean, and its band if there are several seeds; what lies below `least` is left out."""
    colour, dash = style
    kept = [place for place, x in enumerate(curve.x) if x >= least]
    x, mean = ([values[place] for place in kept] for values in (curve.x, curve.mean))
    axes.plot(x, mean, dash, color=colour, label=label, marker="o" if len(x) == 1 else None, markersize=4)
    if curve.deviation:
        deviation = [curve.deviation[place] for place in kept]
        low = [value - off for value, off in zip(mean, deviation)]
        high = [value + off for value, off in zip(mean, deviation)]
        axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
