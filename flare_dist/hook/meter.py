"""Meters of what an exchange of gradients inside backward sends, and when; for our hook and for PyTorch's own."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import astuple, dataclass


@dataclass(frozen=True)
class HookTraffic:
    """The bytes, entries and collectives that a hook has sent."""

    wire_bytes: int = 0  # of the collectives over all ranks, padding included
    uplink_bytes: int = 0  # of this rank, before padding
    kept: int = 0  # entries of the gradients in it
    collectives: int = 0

    def __add__(self, other: HookTraffic) -> HookTraffic:
        return HookTraffic(*map(sum, zip(astuple(self), astuple(other))))

    def since(self, earlier: HookTraffic) -> HookTraffic:
        return HookTraffic(*(now - before for now, before in zip(astuple(self), astuple(earlier))))


class StepClock:
    """When the buckets of a step were handed over, sent and back again. A GPU is behind this clock: on a CPU only."""

    def __init__(self) -> None:
        self.on_send: Callable[[], None] | None = None  # called for each bucket that is sent
        self.begin_step()

    def begin_step(self) -> None:
        self._handed = 0.0
        self.select_seconds = 0.0  # spent on making payloads
        self.sent: list[tuple[float, int]] = []  # (clock, bytes on the wire) of each bucket
        self._last_back = 0.0

    def hand_over(self) -> None:
        """Note that a bucket is complete, and that its payload is made from now on."""
        self._handed = time.perf_counter()

    def send(self, wire_bytes: int) -> None:
        """Note that the payload of the bucket is on its way."""
        now = time.perf_counter()
        self.select_seconds += now - self._handed
        self.sent.append((now, wire_bytes))
        if self.on_send:
            self.on_send()

    def come_back(self) -> None:
        """Note that a bucket's mean is there; on whichever thread."""
        self._last_back = time.perf_counter()

    @property
    def late_seconds(self) -> float:
        """Return by how much the last mean came after the last payload was sent: communication that nothing hides."""
        return max(0.0, self._last_back - self.sent[-1][0]) if self.sent else 0.0
