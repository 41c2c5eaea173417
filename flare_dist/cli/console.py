"""Print tables at full width, and make plots if matplotlib is there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from flare_dist.analysis.plots import MissingMatplotlibError


def wide_console() -> Console:
    """Make a console for tables; a file or a pipe has no edge to wrap at."""
    output = Console()
    if not output.is_terminal:
        output.width = 10_000
    return output


def make_plot(path: Path, plot: Callable[[Path], None]) -> None:
    """Make a plot and print its path; without matplotlib print the reason, since the words beside it do not need it."""
    try:
        plot(path)
    except MissingMatplotlibError as error:
        print(f"no plot: {error}")
    else:
        print(f"plot: {path}")
