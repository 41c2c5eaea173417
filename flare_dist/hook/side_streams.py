"""The stream beside that of backward on which a GPU makes means of what has arrived.

A callback of a future runs on the next of 32 streams of a pool, and the allocator keeps freed memory by stream: each of
the 32 would come to hold as much as the largest bucket takes. One stream holds it once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flare_dist.comm.collectives import Work

Mean = torch.futures.Future[Tensor]


class SideStreams:
    """One stream for each GPU that a model lies on, and what they read of others."""

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._held: list[Tensor | None] = []

    def hold(self, *tensors: Tensor | None) -> None:
        """Hold until the next step what a GPU may still be reading when Python is done with it."""
        self._held += tensors

    def behind(self, work: Work, device: torch.device, make: Callable[[], Tensor]) -> Mean:
        """Return a future of what `make` returns, called once `work` is done.

        On a GPU it is called at once, on the side stream, which waits in place of the host. What it reads must be held,
        and what others read of it later, but for the mean, be allocated by them.
        """
        if device.type != "cuda":
            return work.get_future().then(lambda future: _made(future, make))
        mean: Mean = torch.futures.Future(devices=[device])
        with torch.cuda.stream(self._of(device)):
            work.wait()
            mean.set_result(make())
        return mean

    def join(self) -> None:
        """Begin a step: the current streams wait for the side streams, and let go of what these have read.

        They have waited for every mean, unless a backward was broken off.
        """
        for device, stream in self._streams.items():
            torch.cuda.current_stream(device).wait_stream(stream)
        self._held.clear()

    def _of(self, device: torch.device) -> torch.cuda.Stream:
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        return self._streams[device]


def _made(future: torch.futures.Future[object], make: Callable[[], Tensor]) -> Tensor:
    future.wait()  # which raises what went wrong
    return make()
