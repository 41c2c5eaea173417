"""What rank 0 writes while a run goes on: metrics.jsonl, TensorBoard events and the progress bar.

metrics.jsonl is the source: when a run is resumed its rows are cut back to the round resumed from and the event file is
written anew from them.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from flare_dist.disk import explained
from flare_dist.records.files import write_text
from flare_dist.records.rundir import METRICS
from flare_dist.records.summary import bytes_up
from flare_dist.tasks.task import Best
from flare_dist.units import show_bytes

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0  # of progress where the output is no terminal


def tag(key: str) -> str | None:
    """The TensorBoard tag of a key of metrics.jsonl, or None for what has no curve of its own."""
    for group, suffix in (("accuracy", "_accuracy"), ("loss", "_loss"), ("bytes", "_bytes"), ("seconds", "_seconds")):
        if key.endswith(suffix):
            return f"{group}/{key.removesuffix(suffix)}"
    for part in ("server_validation", "server_test", "validation", "test"):
        if key.startswith(f"{part}_"):
            return f"{key.removeprefix(f'{part}_')}/{part}"
    groups = {
        "clients": ("clients", "rejected_clients"),
        "ranks": ("ranks", "collectives", "steps"),
        "masks": ("active_weights", "mask_mismatch", "dropped_residuals", "dropped_moments"),
    }
    return next((f"{group}/{key}" for group, keys in groups.items() if key in keys), None)


def read_rows(directory: Path, up_to: int) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl of rounds 0 ... `up_to`; lines that cannot be read are left out with a warning.

    The last line is no loss where a kill cut it short: it belongs to a round that is played again.
    """
    path = directory / METRICS
    rows = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        row = _row(line)
        if row is not None:
            rows[row["round"]] = row
    missing = [str(round_) for round_ in range(up_to + 1) if round_ not in rows]
    if missing:
        log.warning("%s has no readable line for rounds %s: totals are incomplete", path, ", ".join(missing))
    return [rows[round_] for round_ in sorted(rows) if round_ <= up_to]


def _row(line: str) -> dict[str, Any] | None:
    """Decode a line; None if it is no row whose values can be added up and drawn."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or type(row.get("round")) is not int:
        return None
    numbers = [value for key, value in row.items() if tag(key) or key == "time"]
    densities = row.get("layer_densities", {})
    numbers += densities.values() if isinstance(densities, dict) else [densities]
    return row if all(isinstance(value, (int, float)) for value in numbers) else None


class EventWriter:
    """A TensorBoard event file, written when it is told to.

    PyTorch's SummaryWriter has a thread for it, which on a full disk ends with a traceback beside our error.
    """

    def __init__(self, directory: Path) -> None:
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.0"
        self._file = (directory / name).open("wb")
        self._records = RecordWriter(self._file)
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def add_scalar(self, name: str, value: float, step: int, walltime: float | None) -> None:
        """Append a value; without a `walltime` it is of now."""
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value)])
        self._write(Event(wall_time=time.time() if walltime is None else walltime, step=step, summary=summary))

    def _write(self, event: Event) -> None:
        self._records.write(event.SerializeToString())

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class Tracker:
    """Open logs of one run directory. `rows` are those of the rounds already done; use as a context manager.

    Raises DiskError if the disk does not take them.
    """

    def __init__(
        self,
        directory: Path,
        rows: Iterable[dict[str, Any]],
        rounds: int,
        console: Console,
        best: Best = ("accuracy", "max"),
    ) -> None:
        self._metric, _ = best
        self.rows = list(rows)
        self.rounds = rounds
        self._earlier_seconds = self.rows[-1].get("elapsed_seconds", 0.0) if self.rows else 0.0
        self._start = time.monotonic()
        self._last_line = self._start
        self._interactive = console.is_terminal
        self._path = directory / METRICS
        with explained("output_dir", self._path):
            for old in directory.glob("events.out.tfevents.*"):
                old.unlink()
            write_text(self._path, "".join(json.dumps(row) + "\n" for row in self.rows))
            self._metrics = self._path.open("a", encoding="utf-8")
            self._events = EventWriter(directory)
            for row in self.rows:
                self._write_events(row)
            self._events.flush()
        self._progress = Progress(
            TextColumn("round"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn(self._metric + " {task.fields[value]}"),
            TextColumn("{task.fields[sent]} sent"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=console,
            disable=not self._interactive,
        )
        self._sent = sum(bytes_up(row) for row in self.rows)
        self._value = "-"
        self._rounds_before = self.rows[-1]["round"] if self.rows else 0  # played before this process
        sent = show_bytes(self._sent)
        self._task = self._progress.add_task("", total=rounds, completed=self._rounds_before, value="-", sent=sent)

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
        """Wall-clock seconds of the run, those before an interruption included."""
        return self._earlier_seconds + time.monotonic() - self._start

    def write(self, row: dict[str, Any]) -> None:
        """Append one round's row to both logs and move the bar."""
        row = {**row, "elapsed_seconds": self.elapsed_seconds, "time": time.time()}
        self.rows.append(row)
        with explained("output_dir", self._path):
            self._metrics.write(json.dumps(row) + "\n")
            self._metrics.flush()
            self._write_events(row)
            self._events.flush()
        self._sent += bytes_up(row)
        if f"test_{self._metric}" in row:
            self._value = f"{row[f'test_{self._metric}']:.4f}"
        sent = show_bytes(self._sent)
        self._progress.update(self._task, completed=row["round"], value=self._value, sent=sent)
        if not self._interactive and time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            done, left = row["round"], self.rounds - row["round"]
            eta = left * (self._last_line - self._start) / max(1, done - self._rounds_before)
            value = f"{self._metric} {self._value}"
            log.info("round %d/%d  %s  %s sent  ETA %.0f s", done, self.rounds, value, sent, eta)

    def _write_events(self, row: dict[str, Any]) -> None:
        for key, value in row.items():
            name = tag(key)
            if name is not None:
                self._events.add_scalar(name, value, row["round"], walltime=row.get("time"))
        for layer, density in row.get("layer_densities", {}).items():
            self._events.add_scalar(f"density/{layer}", density, row["round"], walltime=row.get("time"))

    def sync(self) -> None:
        """Put the rows on the disk, so that no checkpoint is newer than they are."""
        with explained("output_dir", self._path):
            os.fsync(self._metrics.fileno())
