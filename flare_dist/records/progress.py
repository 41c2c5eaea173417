"""The progress of a run as a user sees it: a bar on a terminal, one line of the log for a round elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from flare_dist.progress import SECONDS_BETWEEN_LINES
from flare_dist.records.summary import bytes_up
from flare_dist.units import show_bytes

log = logging.getLogger(__name__)


class RoundProgress:
    """Show the round, the last test metric, the bytes sent so far and the time that is left.

    `rows` are those of the rounds already played, `metric` is the one to show. Without a terminal, every `log_every`
    rounds have a line, or, if that is 0, a round every ten seconds.
    """

    def __init__(
        self, rows: Sequence[dict[str, Any]], rounds: int, console: Console, metric: str, log_every: int = 0
    ) -> None:
        self._metric = metric
        self._log_every = log_every
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
        if not self._has_bar and self._is_due(row["round"]):
            self._log_line(row["round"])

    def _is_due(self, round_: int) -> bool:
        """Tell whether the round has a line: every so many, or the first after ten seconds."""
        if self._log_every:
            return round_ % self._log_every == 0 or round_ == self._rounds
        return time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES

    def _log_line(self, round_: int) -> None:
        self._last_line = time.monotonic()
        value = f"{self._metric} {self._value}"
        sent = show_bytes(self._sent)
        log.info("round %d/%d  %s  %s sent  ETA %s", round_, self._rounds, value, sent, self._eta(round_))

    def _eta(self, round_: int) -> str:
        """Write how long the other rounds will take; - before the first, which no round tells."""
        played = round_ - self._rounds_before
        return f"{(self._rounds - round_) * (self._last_line - self._start) / played:.0f} s" if played > 0 else "-"
