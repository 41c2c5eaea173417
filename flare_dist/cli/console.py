"""Print tables at full width."""

from __future__ import annotations

from rich.console import Console


def wide_console() -> Console:
    """Make a console for tables; a file or a pipe has no edge to wrap at."""
    output = Console()
    if not output.is_terminal:
        output.width = 10_000
    return output
