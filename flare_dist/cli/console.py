"""Where tables are printed, and whether there is a plot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from flare_dist.analysis.plots import MissingMatplotlibError


def wide_console() -> Console:
    """A console for tables; a file or a pipe has no edge to wrap at."""
    output = Console()
    if not output.is_terminal:
        output.width = 10_000
    return output


def make_plot(path: Path, plot: Callable[[Path], None]) -> None:
    """Say where the plot is, or why there is none: what comes with it in words is no less true without."""
    try:
        plot(path)
    except MissingMatplotlibError as error:
        print(f"no plot: {error}")
    else:
        print(f"plot: {path}")
