"""The event file of a run, which TensorBoard shows."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter


class EventWriter:
    """Write a TensorBoard event file in the caller's thread.

    PyTorch's SummaryWriter writes in a thread of its own, which ends with a traceback beside our error if the disk is
    full.
    """

    def __init__(self, directory: Path) -> None:
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.0"
        self._file = (directory / name).open("wb")
        self._records = RecordWriter(self._file)
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def add_scalar(self, name: str, value: float, step: int, walltime: float | None) -> None:
        """Append a value; without a `walltime` it has the present time."""
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value)])
        self._write(Event(wall_time=time.time() if walltime is None else walltime, step=step, summary=summary))

    def add_summary(self, summary: Summary) -> None:
        """Append what is no curve: texts, hyperparameters, layouts."""
        self._write(Event(wall_time=time.time(), summary=summary))

    def add_text(self, name: str, markdown: str) -> None:
        """Append a text, which is shown on a page of its own."""
        from torch.utils import tensorboard  # takes a third of a second, which commands without a run save

        self.add_summary(tensorboard.summary.text(name, markdown))

    def _write(self, event: Event) -> None:
        self._records.write(event.SerializeToString())

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()
