"""The curves of a report, thinned to what a screen shows: against each axis, and against time on other links."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from flare_dist.analysis.curves_plot import is_logarithmic, log_factors, metrics_of
from flare_dist.analysis.figure_style import DASHES, PALETTE, cut
from flare_dist.analysis.links import Link
from flare_dist.analysis.seed_groups import Group, mean_curve
from flare_dist.analysis.x_axis import PROJECTED, TITLES, XAxis
from flare_dist.tasks.metrics import goodness

MOST_POINTS = 200  # of a curve
MOST_MEMBERS = 40  # of the groups of the data that have room in a plot
SHORT_NAME = 22  # characters of the name of a group
SHORT = 36  # characters of a label in a plot
DASH_NAMES = dict(zip(DASHES, ("solid", "dash", "dot", "dashdot")))
STOPS = tuple(factor * 10**power for power in range(6, 10) for factor in (1, 1.5, 2, 3, 5, 7))
FASTEST = 1e10  # bits a second, the last stop of the slider


def style_of(place: int) -> dict[str, Any]:
    """Return colour, dash and number of a setting, the same in every part of the page."""
    dash = DASHES[place // len(PALETTE) % len(DASHES)]
    return {"number": str(place + 1), "colour": PALETTE[place % len(PALETTE)], "dash": DASH_NAMES[dash]}


def links_of(chosen: Link) -> list[Link]:
    """List the links of the slider: those of many rates, with the latency and the duplex of the chosen one."""
    rates = sorted({*STOPS, FASTEST, chosen.rate})
    return [dataclasses.replace(chosen, text=show_rate(rate), rate=rate) for rate in rates]


def show_rate(rate: float) -> str:
    """Write bits a second, as in 1.5 Mbps."""
    unit, size = next(((u, s) for u, s in (("G", 1e9), ("M", 1e6), ("k", 1e3)) if rate >= s), ("", 1.0))
    return f"{rate / size:g} {unit}bps"


def curves_data(groups: Sequence[Group], links: Sequence[Link], topology: str) -> dict[str, Any]:
    """Make what page.js draws: the values of each setting once, and where they lie on each axis."""
    kept = [_thinned(len(mean_curve(group.runs, XAxis("rounds")).x)) for group in groups]
    axes = {kind: _axis(groups, kept, XAxis(kind)) for kind in TITLES}
    stops = [_axis(groups, kept, XAxis(PROJECTED, link, topology)) for link in links]
    return {
        "metric": " or ".join(f"test {metric}" for metric, _ in metrics_of(groups)),
        "groups": [_values(group, places) | style_of(n) for n, (group, places) in enumerate(zip(groups, kept))],
        "axes": axes,
        "projected": stops,
        "rates": [link.text for link in links],
    }


def _thinned(length: int) -> list[int]:
    """Choose evenly spaced places of a list, the first and the last among them."""
    if length <= MOST_POINTS:
        return list(range(length))
    return sorted({round(n * (length - 1) / (MOST_POINTS - 1)) for n in range(MOST_POINTS)})


def _values(group: Group, places: Sequence[int]) -> dict[str, Any]:
    curve = mean_curve(group.runs, XAxis("rounds"))
    return {
        "short": cut(group.label, SHORT),
        "rounds": [curve.rounds[place] for place in places],
        "mean": numbers(curve.mean[place] for place in places),
        "deviation": numbers(curve.deviation[place] for place in places) if curve.deviation else [],
    }


def _axis(groups: Sequence[Group], kept: Sequence[Sequence[int]], axis: XAxis) -> dict[str, Any]:
    """Describe an axis, and where the points of each setting lie on it."""
    curves = [mean_curve(group.runs, axis).x for group in groups]
    log = is_logarithmic(axis, curves)
    return {
        "title": axis.title,
        "unit": axis.unit,
        "log": log,
        "ticks": _log_ticks(axis, [value for x in curves for value in x if value > 0]) if log else [],
        "x": [numbers(x[place] for place in places) for x, places in zip(curves, kept)],
    }


def _log_ticks(axis: XAxis, amounts: Sequence[float]) -> list[tuple[float, str]]:
    """Place the ticks of a logarithmic axis, and label them."""
    least, most = min(amounts), max(amounts)
    powers = range(math.floor(math.log10(least)), math.ceil(math.log10(most)) + 1)
    places = [factor * 10.0**power for power in powers for factor in log_factors(least, most)]
    return [(place, axis.show(place)) for place in places]


def numbers(values: Iterable[float]) -> list[float | None]:
    """Round values to what a plot can show; null for what is not finite, which JSON lacks."""
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in values]


def members_data(groups: Sequence[Group]) -> dict[str, Any] | None:
    """Make the plot of the data's groups: the metric of each under each setting, the worst first; None without any."""
    found = [_members(group) for group in groups]
    names = dict.fromkeys(name for members in found for name in members)
    if not names:
        return None
    best = groups[0].runs[0].best
    mean = {name: fmean(members[name] for members in found if name in members) for name in names}
    ordered = sorted(names, key=lambda name: goodness(best, mean[name]))
    shown = ordered[:MOST_MEMBERS]
    values = [numbers(members.get(name, math.nan) for name in shown) for members in found]
    return {"names": [cut(name, SHORT_NAME) for name in shown], "settings": values, "count": len(ordered)}


def _members(group: Group) -> Mapping[str, float]:
    """Average the metric of each group of the data, as last measured, over the runs of a setting."""
    metric, _ = group.runs[0].best
    last: list[dict[str, Any]] = [
        next((row["groups"] for row in reversed(run.rows) if row.get("groups")), {}) for run in group.runs
    ]
    names = [name for name in last[0] if all(metric in members.get(name, {}) for members in last)]
    return {name: fmean(float(members[name][metric]) for members in last) for name in names}
