"""Options of figures and tables for papers, and what commands write by them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flare_dist.analysis.bandwidth import sends_nothing
from flare_dist.analysis.curves_plot import plot_curves
from flare_dist.analysis.figure_style import FORMATS, WIDTHS, Look, MissingMatplotlibError
from flare_dist.analysis.links import Link
from flare_dist.analysis.means import Setting, write_latex, write_means
from flare_dist.analysis.page import MissingPlotlyError, write_page
from flare_dist.analysis.run_amounts import Summed
from flare_dist.analysis.seed_groups import Group
from flare_dist.analysis.x_axis import CHOICES, XAxis
from flare_dist.tasks.task import Best

log = logging.getLogger(__name__)

PAGE = "report.html"
MEANS = "means.csv"
LATEX = "means.tex"


def add_look(parser: Any) -> None:
    """Add the options of any figure: its formats and its size."""
    parser.add_argument(
        "--format", type=str, default="png", help=f"Formats of figures, separated by commas: {', '.join(FORMATS)}."
    )
    parser.add_argument(
        "--size", type=str, default="page", help=f"Width of figures: that of a {' or of a '.join(WIDTHS)} of a paper."
    )


def add_curves(parser: Any) -> None:
    """Add the options of curves and of tables of means: those of any figure, and what the metric is drawn against."""
    add_look(parser)
    parser.add_argument(
        "--x",
        type=str,
        default="uplink",
        help=f"What the metric is drawn against: {', '.join(CHOICES)}, e.g. projected:100Mbps/20ms.",
    )
    parser.add_argument("--latex", action="store_true", help=f"Write the table of means for LaTeX as well, {LATEX}.")


def parse_look(options: Any) -> Look:
    """Read --size and --format."""
    return Look.parse(options.size, options.format)


def parse_axis(options: Any) -> XAxis:
    """Read --x, on the topology of --topology if the command has it."""
    return XAxis.parse(options.x, getattr(options, "topology", "ranks"))


def check_figures(options: Any) -> None:
    """Raise ValueError if an option of curves is wrong, before what they show is trained."""
    parse_look(options)
    parse_axis(options)


def print_plots(plot: Callable[[], list[Path]]) -> None:
    """Make a plot and print its paths; without matplotlib print the reason: the words beside it do not need it."""
    try:
        paths = plot()
    except MissingMatplotlibError as error:
        print(f"no plot: {error}")
    else:
        for path in paths:
            print(f"plot: {path}")


def draw_curves(groups: Sequence[Group], options: Any, directory: Path) -> None:
    """Plot the metric of the groups against --x and print the paths; nothing if it was never measured."""
    _warn_of_one_rank(groups, options)
    if any(f"test_{run.best[0]}" in row for group in groups for run in group.runs for row in run.rows):
        print_plots(lambda: plot_curves(groups, parse_axis(options), parse_look(options), directory))


def _warn_of_one_rank(groups: Sequence[Group], options: Any) -> None:
    """Name the runs to which the links that were asked for make no difference."""
    axis = parse_axis(options)
    is_projected = axis.link is not None or bool(getattr(options, "link", []))
    silent = [run.name for group in groups for run in group.runs if sends_nothing(run)]
    if is_projected and axis.topology == "ranks" and silent:
        names = silent[0] if len(silent) == 1 else f"{silent[0]} and {len(silent) - 1} more"
        why = "one rank sends nothing, so no link makes a difference"
        log.warning("%s: %s; with report --topology star every client sends", names, why)


def save_means(settings: Sequence[Setting], best: Best, options: Any, directory: Path) -> None:
    """Write means.csv, and means.tex if it is asked for; print the paths."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        print(f"means: {write_means(directory / MEANS, settings)}")
        if options.latex:
            print(f"means: {write_latex(directory / LATEX, settings, best)}")
    except OSError as error:
        raise ValueError(f"output_dir: cannot write to {directory}: {error.strerror}") from error


def save_page(
    found: Sequence[Summed], links: Sequence[Link], options: Any, directory: Path, notes: Sequence[str]
) -> bool:
    """Write report.html and print its path, or the reason why there is none; tells if there is one."""
    try:
        path = write_page(directory / PAGE, found, links[0] if links else None, parse_axis(options), notes)
    except MissingPlotlyError as error:
        print(f"no report: {error}")
        return False
    print(f"report: {path}")
    return True
