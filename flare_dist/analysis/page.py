"""One HTML file about several runs that holds all that it shows, the script of plotly included: it needs no network."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from flare_dist.analysis import links as links_module
from flare_dist.analysis.bandwidth import sends_nothing
from flare_dist.analysis.links import Link
from flare_dist.analysis.means import columns_of, title_of
from flare_dist.analysis.page_data import MOST_MEMBERS, curves_data, links_of, members_data
from flare_dist.analysis.page_rows import DATE, ORIGIN, result_rows, spread_rows
from flare_dist.analysis.plots import ACTIVITIES
from flare_dist.analysis.run_amounts import Summed
from flare_dist.analysis.seed_groups import Group
from flare_dist.analysis.x_axis import PROJECTED, XAxis
from flare_dist.units import counted, show_seconds

START = Link("100Mbps", 1e8)  # if the reader has named no link


class MissingPlotlyError(ValueError):
    """Report that a page was asked for and what makes it is not installed."""


def write_page(path: Path, found: Sequence[Summed], chosen: Link | None, axis: XAxis, notes: Sequence[str]) -> Path:
    """Write the report on `found`, drawn against `axis` first; its slider begins at the `chosen` link, or at that of
    the axis. Returns the path.

    Raises MissingPlotlyError if the extra `plots` is not installed, and ValueError if the file cannot be written.
    """
    try:
        from jinja2 import Environment, StrictUndefined
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise MissingPlotlyError("the report needs plotly: pip install 'flare_dist[plots]'") from error
    texts = {name: files(__package__).joinpath(f"page.{name}").read_text("utf-8") for name in ("html", "css", "js")}
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(texts.pop("html"))
    page = template.render(_context(found, chosen or axis.link or START, axis, notes), **texts, plotly=get_plotlyjs())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ValueError(f"output_dir: cannot write {path}: {error.strerror}") from error
    return path


def _context(found: Sequence[Summed], link: Link, axis: XAxis, notes: Sequence[str]) -> dict[str, Any]:
    """Make everything that the template names."""
    topology = axis.topology
    groups = [one.group for one in found]
    runs = [run for group in groups for run in group.runs]
    problem = _why_not_projected(groups, link, topology)
    stops = [] if problem else links_of(link)
    by_slider = {f"seconds at {name}" for name in found[0].totals[0].projected}
    columns = [column for column in columns_of([one.setting for one in found]) if column not in by_slider]
    data = curves_data(groups, stops, topology)
    data["members"] = members_data(groups)
    return {
        "title": "Report on runs",
        "intro": f"{counted(len(runs), 'run')} in {counted(len(groups), 'setting')}. Written on "
        f"{time.strftime(DATE)} by flare_dist {version('flare_dist')}.",
        "notes": [*notes, *problem, *(note for run in runs for note in run.notes)],
        "results_words": _results_words(groups),
        "columns": [title_of(column) for column in columns],
        "groups": result_rows(found, columns, stops, topology),
        "rates": data["rates"],
        "start": next((n for n, stop in enumerate(stops) if stop.rate == link.rate), 0),
        "link_words": _link_words(link, topology, not all(map(sends_nothing, runs))),
        "metric_title": f"{data['metric'].capitalize()} against what it takes",
        "axes": [(kind, shown["title"]) for kind, shown in data["axes"].items()],
        "first_axis": axis.kind,
        "differences": list(dict.fromkeys(key for group in groups for key in group.values)),
        "activities": list(ACTIVITIES.items()),
        "members": data["members"],
        "members_words": _members_words(data["members"]),
        "spreads": spread_rows(groups),
        "origin_columns": ORIGIN,
        "model": _model_words(),
        "data": data,
    }


def _why_not_projected(groups: Sequence[Group], link: Link, topology: str) -> list[str]:
    """Explain why times cannot be projected on other links; empty if they can."""
    axis = XAxis(PROJECTED, link, topology)
    try:
        for group in groups:
            for run in group.runs:
                axis.points(run)
    except ValueError as error:
        return [f"No times on other links: {error}."]
    return []


def _results_words(groups: Sequence[Group]) -> str:
    """Say how the numbers of the table come about."""
    words = ["The best mean is bold."] if len(groups) > 1 else []
    if any(len(group.runs) > 1 for group in groups):
        words.insert(0, "Mean ± standard deviation over the seeds; a button shows each of them.")
    return " ".join(words)


def _link_words(link: Link, topology: str, has_traffic: bool) -> str:
    """Describe the link beside its rate; without traffic between ranks, tell that it makes no difference to them."""
    whose = {"ranks": "Every rank has such a link", "star": "Every client has such a link to the server"}[topology]
    ways = {"full": "both ways at once", "half": "one way after the other", "shared": "all take turns on one medium"}
    latency = f", latency {show_seconds(link.latency)}" if link.latency else ", without latency"
    words = f"{whose}: {ways[link.duplex]}{latency}. Drag the slider to choose its rate."
    if topology == "ranks" and not has_traffic:
        words += " These runs had one rank, which sends nothing, so no rate makes a difference; with --topology star"
        words += " every client sends."
    return words


def _model_words() -> list[str]:
    """Return the paragraphs that explain how times are projected: the docstring of links.py, which says it once."""
    _, *paragraphs = (links_module.__doc__ or "").replace("`", "").split("\n\n")
    return [" ".join(text.split()) for text in paragraphs]


def _members_words(members: Mapping[str, Any] | None) -> str:
    """Say which groups of the data are shown."""
    if members is None:
        return ""
    words = "The metric on each group of the test set in the last evaluation, the worst first."
    left_out = members["count"] - MOST_MEMBERS
    return f"{words} {left_out} better ones are left out." if left_out > 0 else words
