"""TensorBoard: the tag of each key of metrics.jsonl, and the event file of a run."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter


def tag(key: str) -> str | None:
    """Return the TensorBoard tag of a key of metrics.jsonl; None if it has no curve of its own."""
    for group, suffix in (("accuracy", "_accuracy"), ("loss", "_loss"), ("bytes", "_bytes"), ("seconds", "_seconds")):
        if key.endswith(suffix):
            return f"{group}/{key.removesuffix(suffix)}"
    for part in ("server_validation", "server_test", "validation", "test"):
        if key.startswith(f"{part}_"):
            return f"{key.removeprefix(f'{part}_')}/{part}"
    groups = {
        "clients": ("clients", "rejected_clients", "skipped_examples"),
        "ranks": ("ranks", "collectives", "steps"),
        "masks": ("active_weights", "mask_mismatch", "dropped_residuals", "dropped_moments"),
    }
    return next((f"{group}/{key}" for group, keys in groups.items() if key in keys), None)


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

    def add_text(self, name: str, markdown: str) -> None:
        """Append a text, which is shown on a page of its own."""
        from torch.utils import tensorboard  # takes a third of a second, which commands without a run save

        self._write(Event(wall_time=time.time(), summary=tensorboard.summary.text(name, markdown)))

    def add_row(self, row: dict[str, Any]) -> None:
        """Append every value of a row of metrics.jsonl that has a curve."""
        for key, value in row.items():
            name = tag(key)
            if name is not None:
                self.add_scalar(name, value, row["round"], walltime=row.get("time"))
        for layer, density in row.get("layer_densities", {}).items():
            self.add_scalar(f"density/{layer}", density, row["round"], walltime=row.get("time"))

    def _write(self, event: Event) -> None:
        self._records.write(event.SerializeToString())

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()
