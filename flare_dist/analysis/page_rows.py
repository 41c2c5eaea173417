"""The rows of a report's tables: results with their seeds, where time went, who does worst, dates and versions."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from flare_dist.analysis.links import Link
from flare_dist.analysis.means import best_of_column, cell, unit_of
from flare_dist.analysis.page_data import style_of
from flare_dist.analysis.plots import ACTIVITIES, seconds_of_a_round
from flare_dist.analysis.run_amounts import Summed
from flare_dist.analysis.run_logs import RunLog
from flare_dist.analysis.seed_groups import Group
from flare_dist.analysis.x_axis import PROJECTED, XAxis
from flare_dist.tasks.spread import MEMBERS
from flare_dist.units import show_seconds

DATE = "%Y-%m-%d %H:%M"
ORIGIN = ("began", "ended", "versions", "hardware")
VERSIONS = ("flare_dist", "torch", "python")


def result_rows(
    found: Sequence[Summed], columns: Sequence[str], stops: Sequence[Link], topology: str
) -> list[dict[str, Any]]:
    """Make a row for each setting, and below it one for each of its runs."""
    settings = [one.setting for one in found]
    tops = {column: best_of_column(settings, column, found[0].group.runs[0].best) for column in columns}
    rows = []
    for n, (one, setting) in enumerate(zip(found, settings)):
        runs = [_run_row(run, one, place, columns, stops, topology) for place, run in enumerate(one.group.runs)]
        cells = [{"text": cell(setting, column), "best": n in tops[column]} for column in columns]
        rows.append(
            style_of(n)
            | {"place": n, "label": one.group.label, "cells": cells, "runs": runs, "differences": one.group.values}
            | {"seconds": [show_seconds(seconds) for seconds in _projected(one.group.runs, stops, topology)]}
            | _time_of(one)
            | {"origin": origin_of(one.group)}
        )
    return rows


def _run_row(
    run: RunLog, one: Summed, place: int, columns: Sequence[str], stops: Sequence[Link], topology: str
) -> dict[str, Any]:
    """Make the row of one seed."""
    amounts = one.amounts_of(place)
    name = f"seed {run.config['seed']}: {run.name}" if "seed" in run.config else run.name
    cells = [unit_of(column)(amounts[column]) if column in amounts else "-" for column in columns]
    if len(one.group.runs) == 1:
        return {"name": name}
    return {"name": name, "cells": cells, "seconds": list(map(show_seconds, _projected([run], stops, topology)))}


def _projected(runs: Sequence[RunLog], stops: Sequence[Link], topology: str) -> list[float]:
    """Project all rounds on each link, the mean over the runs."""
    axes = [XAxis(PROJECTED, link, topology) for link in stops]
    return [fmean(sum(axis.amount(run, row) for row in run.rows) for run in runs) for axis in axes]


def _time_of(one: Summed) -> dict[str, Any]:
    """Divide the mean measured round of a setting by activity, as widths of a bar and in words."""
    by_run = [seconds_of_a_round(found) for found in one.totals]
    seconds = {kind: fmean(parts[kind] for parts in by_run) for kind in ACTIVITIES}
    whole = sum(seconds.values())
    if not whole:
        return {"time": [], "time_words": ""}
    words = {kind: f"{kind} {show_seconds(value)} ({value / whole:.0%})" for kind, value in seconds.items()}
    parts = [
        {"width": f"{100 * value / whole:.2f}", "colour": ACTIVITIES[kind], "text": words[kind]}
        for kind, value in seconds.items()
    ]
    return {"time": parts, "time_words": f"{show_seconds(whole)} a round: {', '.join(words.values())}"}


def spread_rows(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Make a row for each setting and kind of member: the worst and the best of the last evaluation, by the first run.

    Their values are means over the runs; a name stands beside them if all runs agree in it.
    """
    rows = []
    for n, group in enumerate(groups):
        metric, _ = group.runs[0].best
        for kind, words in MEMBERS.items():
            keys = {"worst": f"worst_{kind}_{metric}", "best": f"best_{kind}_{metric}"}
            keys["deviation"] = f"{kind}_{metric}_std"
            last = [next((row for row in reversed(run.rows) if keys["worst"] in row), None) for run in group.runs]
            known = [row for row in last if row is not None]
            if known:
                shown = {word: f"{fmean(float(row[key]) for row in known):.4f}" for word, key in keys.items()}
                names = {row.get(f"worst_{kind}_name") for row in known}
                shown["worst"] += f" ({names.pop()})" if len(names) == 1 else ""
                rows.append({"group": style_of(n) | {"label": group.label}, "kind": words, **shown})
    return rows


def origin_of(group: Group) -> dict[str, str]:
    """Tell when the runs of a setting began and ended, by which versions they were made and on what."""
    times = [row["time"] for run in group.runs for row in run.rows if "time" in row]
    versions = [run.summary.get("versions") for run in group.runs]
    hardware = [run.summary.get("hardware") for run in group.runs]
    return {
        "began": _date(min(times, default=None)),
        "ended": _date(max(times, default=None)),
        "versions": _listed([{key: known.get(key) for key in VERSIONS} for known in versions if known]),
        "hardware": _listed([known for known in hardware if known]),
    }


def _date(seconds: float | None) -> str:
    return "-" if seconds is None else time.strftime(DATE, time.localtime(seconds))


def _listed(found: Sequence[Mapping[str, Any]]) -> str:
    """Write names with values, those of several runs once if they agree."""
    texts = [", ".join(f"{key} {value}" for key, value in one.items() if value) for one in found]
    return " or ".join(dict.fromkeys(texts)) or "-"
