"""The logs that rank 0 writes while a run goes on: metrics.jsonl, TensorBoard events and the progress bar.

metrics.jsonl is the source. When a run is resumed its rows are cut back to the round resumed from, and the event file
is written anew from them.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich.console import Console

from flare_dist.disk import explained
from flare_dist.records.files import write_text
from flare_dist.records.progress import RoundProgress
from flare_dist.records.rundir import METRICS
from flare_dist.records.tensorboard import EventWriter
from flare_dist.tasks.task import Best


class Tracker:
    """Keep the logs of one run directory open; use as a context manager.

    `rows` are those of the rounds already played, `best` names the metric that the progress bar shows, `texts` are
    Markdown by name for TensorBoard. Raises DiskError if the disk does not take the logs.
    """

    def __init__(
        self,
        directory: Path,
        rows: Iterable[dict[str, Any]],
        rounds: int,
        console: Console,
        best: Best = ("accuracy", "max"),
        texts: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.rows = list(rows)
        self._earlier_seconds = self.rows[-1].get("elapsed_seconds", 0.0) if self.rows else 0.0
        self._start = time.monotonic()
        self._path = directory / METRICS
        with explained("output_dir", self._path):
            for old in directory.glob("events.out.tfevents.*"):
                old.unlink()
            write_text(self._path, "".join(json.dumps(row) + "\n" for row in self.rows))
            self._metrics = self._path.open("a", encoding="utf-8")
            self._events = EventWriter(directory)
            for name, text in texts.items():
                self._events.add_text(name, text)
            for row in self.rows:
                self._events.add_row(row)
            self._events.flush()
        self._progress = RoundProgress(self.rows, rounds, console, best[0])

    def __enter__(self) -> Tracker:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        self._progress.stop()
        for log_file in (self._metrics, self._events):
            # What is left in their buffers fails again on the disk that has ended the run.
            with explained("output_dir", self._path) if kind is None else suppress(OSError):
                log_file.close()

    @property
    def elapsed_seconds(self) -> float:
        """Return the wall-clock seconds of the run, including those before an interruption."""
        return self._earlier_seconds + time.monotonic() - self._start

    def write(self, row: dict[str, Any]) -> None:
        """Append one round's row to both logs and move the bar."""
        row = {**row, "elapsed_seconds": self.elapsed_seconds, "time": time.time()}
        self.rows.append(row)
        with explained("output_dir", self._path):
            self._metrics.write(json.dumps(row) + "\n")
            self._metrics.flush()
            self._events.add_row(row)
            self._events.flush()
        self._progress.update(row)

    def sync(self) -> None:
        """Put the rows on the disk, so that no checkpoint is newer than they are."""
        with explained("output_dir", self._path):
            os.fsync(self._metrics.fileno())
