"""The logs that rank 0 writes while a run goes on: metrics.jsonl, TensorBoard events, other trackers and the bar.

metrics.jsonl is the source. When a run is resumed its rows are cut back to the round resumed from, and the event file
is written anew from them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich.console import Console

from flare_dist.config.config import Config
from flare_dist.config.saved import as_dict
from flare_dist.disk import explained
from flare_dist.json_lines import encoded
from flare_dist.records.background import Background
from flare_dist.records.cards import cards, end_card
from flare_dist.records.clients_log import ClientsLog
from flare_dist.records.curves import Curves, learning_rates
from flare_dist.records.files import write_text
from flare_dist.records.progress import RoundProgress
from flare_dist.records.rundir import METRICS
from flare_dist.records.tensorboard import EventWriter
from flare_dist.records.trackers import TRACKERS, Point, TrackedRun
from flare_dist.tasks.task import Best


class Tracker:
    """Keep the logs of one run directory open; use as a context manager.

    `rows` are those of the rounds already played, `best` names the metric that the progress bar shows, `first_round` is
    the first round of this configuration, `texts` are Markdown by name for TensorBoard. Raises DiskError if the disk
    does not take the logs; other trackers may fail.
    """

    def __init__(
        self,
        config: Config,
        rows: Iterable[dict[str, Any]],
        console: Console,
        best: Best = ("accuracy", "max"),
        first_round: int = 1,
        texts: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        directory = Path(config.output_dir)
        self.rows = list(rows)
        self._earlier_seconds = self.rows[-1].get("elapsed_seconds", 0.0) if self.rows else 0.0
        self._start = time.monotonic()
        self._path = directory / METRICS
        self._curves = Curves(learning_rates(config, first_round), best[0])
        points = [self._point(row) for row in self.rows]
        self._events: EventWriter | None = None
        with explained("output_dir", self._path):
            for old in directory.glob("events.out.tfevents.*"):
                old.unlink()
            write_text(self._path, "".join(encoded(row) + "\n" for row in self.rows))
            self._metrics = self._path.open("a", encoding="utf-8")
            self._clients = ClientsLog(directory)
            if "tensorboard" in config.tracking:
                self._events = _begin_events(directory, config, best, points, texts)
        self._progress = RoundProgress(self.rows, config.rounds, console, best[0], config.log_every)
        run = TrackedRun(directory, as_dict(config), points)
        names = [name for name in dict.fromkeys(config.tracking) if name in TRACKERS]
        self._others = [Background(name, TRACKERS[name](run)) for name in names]

    def __enter__(self) -> Tracker:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        self._progress.stop()
        # Each is closed even if another one fails: what was registered last comes first.
        with ExitStack() as stack:
            for log_file in (self._clients, self._metrics):
                stack.callback(self._close, log_file.close, kind is None)
            if self._events is not None:
                stack.callback(self._close, self._events.close, kind is None)
                if kind is None:
                    stack.callback(self._close, partial(self._events.add_summary, end_card()), True)
            for other in self._others:
                stack.callback(other.close, finished=kind is None)

    def _close(self, close: Callable[[], None], finished: bool) -> None:
        """Close a file; what is left in its buffer fails again on the disk that has ended a run."""
        with explained("output_dir", self._path) if finished else suppress(OSError):
            close()

    @property
    def elapsed_seconds(self) -> float:
        """Return the wall-clock seconds of the run, including those before an interruption."""
        return self._earlier_seconds + time.monotonic() - self._start

    def write(self, row: dict[str, Any]) -> None:
        """Append one round's row to all logs, its `participants` to clients.jsonl, and move the bar."""
        if "participants" in row:
            self._clients.write(row["round"], row["participants"])
        row = {key: value for key, value in row.items() if key != "participants"}
        row = {**row, "elapsed_seconds": self.elapsed_seconds, "time": time.time()}
        self.rows.append(row)
        point = self._point(row)
        with explained("output_dir", self._path):
            self._metrics.write(encoded(row) + "\n")
            self._metrics.flush()
            if self._events is not None:
                _add(self._events, point)
                self._events.flush()
        for other in self._others:
            other.send(point)
        self._progress.update(row)

    def sync(self) -> None:
        """Put the rows on the disk, so that no checkpoint is newer than they are."""
        with explained("output_dir", self._path):
            os.fsync(self._metrics.fileno())
        self._clients.sync()

    def _point(self, row: dict[str, Any]) -> Point:
        return Point(row["round"], row.get("time", time.time()), self._curves.values(row))


def _begin_events(
    directory: Path, config: Config, best: Best, points: Iterable[Point], texts: Mapping[str, str]
) -> EventWriter:
    """Open a new event file with the run's cards and texts and the rounds already played."""
    events = EventWriter(directory)
    for name, text in texts.items():
        events.add_text(name, text)
    for summary in cards(config, best):
        events.add_summary(summary)
    for point in points:
        _add(events, point)
    events.flush()
    return events


def _add(events: EventWriter, point: Point) -> None:
    for name, value in point.values.items():
        events.add_scalar(name, value, point.round, walltime=point.time)
