"""The bytes that collectives move over all ranks, padding included: the one place of these formulas."""

from __future__ import annotations

from dataclasses import dataclass


def all_gather_wire(size: int, nbytes: int) -> int:
    """Count the bytes that move over all ranks when each of `size` sends its `nbytes` to all others."""
    return size * (size - 1) * nbytes


def all_reduce_wire(size: int, nbytes: int) -> int:
    """Count the bytes that move over all ranks when a ring of `size` sums up `nbytes`."""
    return 2 * (size - 1) * nbytes


@dataclass
class Traffic:
    """The bytes that this rank's collectives moved, and the time that they took."""

    wire_bytes: int = 0
    collectives: int = 0
    communication_seconds: float = 0.0
    waiting_seconds: float = 0.0
