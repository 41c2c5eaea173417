"""The progress of a run as a user sees it: a bar on a terminal, a line in the log every ten seconds elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from flare_dist.records.summary import bytes_up
from flare_dist.units import show_bytes

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0  # of the log, if the output is no terminal


class RoundProgress:
    """Show the round, the last test metric, the bytes sent so far and the time that is left.

    `rows` are those of the rounds already played, `metric` is the one to show.
    """

    def __init__(self, rows: Sequence[dict[str, Any]], rounds: int, console: Console, metric: str) -> None:
        self._metric = metric
        self._rounds = rounds
        self._rounds_before = rows[-1]["round"] if rows else 0  # played before this process
        self._sent = sum(bytes_up(row) for row in rows)
        self._value = "-"
        self._start = time.monotonic()
        self._last_line = self._start
        self._has_bar = console.is_terminal
        self._bar = Progress(
            TextColumn("round"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn(metric + " {task.fields[value]}"),
            TextColumn("{task.fields[sent]} sent"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=console,
            disable=not self._has_bar,
        )
        sent = show_bytes(self._sent)
        self._task = self._bar.add_task("", total=rounds, completed=self._rounds_before, value=self._value, sent=sent)

    def start(self) -> None:
        self._bar.start()

    def stop(self) -> None:
        self._bar.stop()

    def update(self, row: dict[str, Any]) -> None:
        """Show that a round has been played."""
        self._sent += bytes_up(row)
        if f"test_{self._metric}" in row:
            self._value = f"{row[f'test_{self._metric}']:.4f}"
        self._bar.update(self._task, completed=row["round"], value=self._value, sent=show_bytes(self._sent))
        if not self._has_bar and time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self._log_line(row["round"])

    def _log_line(self, round_: int) -> None:
        played = max(1, round_ - self._rounds_before)
        eta = (self._rounds - round_) * (self._last_line - self._start) / played
        value = f"{self._metric} {self._value}"
        log.info("round %d/%d  %s  %s sent  ETA %.0f s", round_, self._rounds, value, show_bytes(self._sent), eta)
