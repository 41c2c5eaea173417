"""A watch for replicas that hand over other parameters than the rest, or in another order.

Each exchange is preceded by one of four bytes, the number of what is handed over. Payloads of other lengths would end a
process of gloo, and hang one of NCCL; those of one length would be added up.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flare_dist.comm.collectives import ProcessGroup, start_gather

_PROBLEM = (
    "attach: the replicas must reduce the gradients of the same modules in the same order, got another module on one "
    "of them, as if its forward had left one out; run the same modules on all replicas, times 0 where one has no use "
    "for it"
)


class CallOrder:
    """Compares what replicas hand over; on a GPU nobody waits for it, and `look` tells of it a step late."""

    def __init__(self, group: ProcessGroup | None) -> None:
        self._group = group
        self._differs: Tensor | None = None
        self._arrived: Tensor | None = None
        self._event: torch.cuda.Event | None = None

    def compare(self, number: Tensor) -> None:
        """Raise RuntimeError, on a CPU, if a replica is about to exchange something else than `number`, int32 [1]."""
        gathered, work = start_gather(number, self._group)
        work.wait()
        differs = gathered.to(number.device).ne(number).any()
        if not number.is_cuda:
            if differs:
                raise RuntimeError(_PROBLEM)
            return
        self._differs = differs if self._differs is None else self._differs | differs

    def end_step(self) -> None:
        """Let what was found on a GPU travel to the CPU."""
        if self._differs is None or self._arrived is not None:
            return
        self._arrived = torch.empty((), dtype=torch.bool, pin_memory=True)
        self._arrived.copy_(self._differs, non_blocking=True)
        self._event = torch.cuda.current_stream(self._differs.device).record_event()
        self._differs = None

    def look(self) -> None:
        """Raise RuntimeError if what has arrived by now tells of other replicas' order."""
        if self._arrived is None or (self._event is not None and not self._event.query()):
            return
        differs = bool(self._arrived)
        self._arrived = None
        self._event = None
        if differs:
            raise RuntimeError(_PROBLEM)
