"""Read the scalars of one TensorBoard event file past damaged records.

A record is its length (8 bytes), a checksum of these, the event and a checksum of it. TensorBoard's own reader ends
silently at the first record whose checksum is wrong. This one goes on at the next whole record and tells what it left
out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from tensorboard.util import tensor_util

# Matches a length below 4 GiB, but not the zeros that a crash may leave at the end of a file.
LENGTH = re.compile(rb"(?=(?!\0{4})[\s\S]{4}\0{4})")
# Bytes of a record around its event.
BEFORE = 12
BEHIND = 4


@dataclass(frozen=True)
class Scalar:
    """Hold one value of a tag."""

    tag: str
    step: int
    time: float  # wall clock, seconds
    value: float


@dataclass(frozen=True)
class EventFile:
    """Hold the scalars of one event file, as far as it could be read."""

    path: Path
    scalars: list[Scalar]  # as they were written
    lost: str | None  # the damage, in words


def read_event_file(path: Path) -> EventFile:
    """Read every scalar of the file that can be read, in SummaryWriter's old style and in its new one."""
    try:
        data = path.read_bytes()
    except OSError as error:
        return EventFile(path, [], f"it cannot be read ({error.strerror})")
    scalars: list[Scalar] = []
    damaged: list[tuple[int, int]] = []
    for start, end, record in _records(data):
        event = _event(record)
        if event is None:
            damaged.append((start, end))
        else:
            scalars += _scalars(event, scalars[-1].time if scalars else 0.0)
    return EventFile(path, scalars, _what_is_lost(damaged, len(data)))


def _records(data: bytes) -> Iterator[tuple[int, int, bytes | None]]:
    """Yield (start, end, record) through the whole file; the record is None for bytes that hold no whole one."""
    place = 0
    while place < len(data):
        start, end = _next_record(data, place)
        if start > place:
            yield place, start, None
        if end > start:
            yield start, end, data[start + BEFORE : end - BEHIND]
        place = end


def _next_record(data: bytes, place: int) -> tuple[int, int]:
    """Find (start, end) of the first whole record at or behind `place`; both are the file's end if there is none."""
    for match in LENGTH.finditer(data, place):
        start = match.start()
        end = start + BEFORE + int.from_bytes(data[start : start + 8], "little") + BEHIND
        if end <= len(data) and _is_whole(data, start, start + 8) and _is_whole(data, start + BEFORE, end - BEHIND):
            return start, end
    return len(data), len(data)


def _is_whole(data: bytes, start: int, end: int) -> bool:
    """Compare the bytes of `data` with the checksum that follows them."""
    return bool(masked_crc32c(data[start:end]) == int.from_bytes(data[end : end + 4], "little"))


def _event(record: bytes | None) -> Any:
    """Decode an event; None if the record holds none."""
    if record is None:
        return None
    try:
        return Event.FromString(record)
    except Exception:  # protobuf's DecodeError moved between its versions
        return None


def _scalars(event: Any, time: float) -> Iterator[Scalar]:
    """Yield the numbers of an event; `time` is taken if the event's own is not finite."""
    for value in event.summary.value:
        number = value.simple_value if value.WhichOneof("value") == "simple_value" else _number_of(value)
        if number is not None:
            yield Scalar(value.tag, event.step, event.wall_time if math.isfinite(event.wall_time) else time, number)


def _number_of(value: Any) -> float | None:
    """Take the number out of a tensor of one element; None for anything else."""
    if value.WhichOneof("value") != "tensor" or any(size.size != 1 for size in value.tensor.tensor_shape.dim):
        return None
    try:
        array = np.asarray(tensor_util.make_ndarray(value.tensor))
    except (TypeError, ValueError):  # no type of numpy's, or fewer values than the shape has
        return None
    return float(array.item()) if array.size == 1 and array.dtype.kind in "biuf" else None


def _what_is_lost(damaged: list[tuple[int, int]], size: int) -> str | None:
    """Describe the damaged parts of a file of `size` bytes; None if there are none."""
    if not size:
        return "it is empty"
    if not damaged:
        return None
    lost = sum(end - start for start, end in damaged)
    places = ", ".join(f"{start} to {end}" for start, end in damaged[:3]) + (", ..." if damaged[3:] else "")
    last = ", the end of the file" if damaged[-1][1] == size else ""
    return f"{lost} of its {size} bytes are damaged and left out (bytes {places}{last})"
