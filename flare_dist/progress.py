"""Show how far long work has come: a bar on a terminal; elsewhere a line of the log every ten seconds.

A command chooses the console once, by `shown_on`; without it, as from Python, nothing is shown.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from flare_dist.units import show_bytes

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0  # of the log, if the output is no terminal
PATIENCE_SECONDS = 2.0  # shorter work shows nothing

_console: ContextVar[Console | None] = ContextVar("console", default=None)


@contextmanager
def shown_on(console: Console | None) -> Iterator[None]:
    """Show the progress of what is done within the block on `console`; None or a quiet one shows nothing."""
    token = _console.set(console)
    try:
        yield
    finally:
        _console.reset(token)


class Steps:
    """Show how many of `total` steps are done, their bytes and the time that is left; use as a context manager.

    `console` is that of `shown_on` unless it is given. If steps are long, the bar is there `at_once` and not after
    two seconds. `has_lines` is False where the caller logs each step itself.
    """

    def __init__(
        self, what: str, total: int, console: Console | None = None, at_once: bool = False, has_lines: bool = True
    ) -> None:
        console = _console.get() if console is None else console
        self._what = what
        self._total = total
        self._done = 0
        self._bytes = 0.0
        self._began = self._last_line = time.monotonic()
        self._is_shown = console is not None and not console.quiet
        self._has_lines = has_lines and self._is_shown and not (console and console.is_terminal)
        self._bar = self._make_bar(console) if console and console.is_terminal and self._is_shown else None
        self._patience = 0.0 if at_once else PATIENCE_SECONDS

    def _make_bar(self, console: Console) -> Progress:
        columns = [
            TextColumn("{task.description}"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[sent]}"),
        ]
        bar = Progress(
            *columns, TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn(), console=console, transient=True
        )
        self._task = bar.add_task(self._what, total=self._total, sent="")
        return bar

    def __enter__(self) -> Steps:
        if self._bar and not self._patience:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar and self._bar.live.is_started:
            self._bar.stop()

    def advance(self, steps: int = 1, nbytes: float = 0.0) -> None:
        """Count steps that are done, and the bytes that they have read, written or sent."""
        self._done += steps
        self._bytes += nbytes
        if not self._is_shown:
            return
        now = time.monotonic()
        amount = show_bytes(self._bytes) if self._bytes else ""
        if self._bar:
            self._bar.update(self._task, completed=self._done, sent=amount)
            if not self._bar.live.is_started and now - self._began > self._patience:
                self._bar.start()
        elif self._has_lines and now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            eta = (self._total - self._done) * (now - self._began) / max(self._done, 1)
            log.info("%s %d/%d  %s  ETA %.0f s", self._what, self._done, self._total, amount, eta)
