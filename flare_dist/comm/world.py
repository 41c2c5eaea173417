"""The process group of a run and its collectives.

`World` is the ranks of this run. With one rank its collectives return their input, so nothing above this module asks
whether there is a process group. It counts what the collectives moved: `wire_bytes` over all W ranks, padding
included, as all-gather W(W-1)B for B bytes a rank, ring all-reduce 2(W-1)B, broadcast (W-1)B.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from flare_dist.comm.collectives import start_gather
from flare_dist.comm.heartbeat import heartbeat
from flare_dist.comm.launch import Launch
from flare_dist.comm.traffic import Traffic, all_gather_wire, all_reduce_wire

# Held beyond its end: a gloo thread that drops the last reference, with a callback, waits for itself and aborts.
_last_group: list[Any] = []


class World:
    """The ranks of a run, and the bytes that their collectives moved."""

    def __init__(self, rank: int = 0, size: int = 1, device: torch.device | None = None, backend: str = "") -> None:
        self.rank = rank
        self.size = size
        self.device = device or torch.device("cpu")
        self._wire_device = self.device if backend == "nccl" else torch.device("cpu")
        self.traffic = Traffic()  # of the round: rounds/ledger.py begins anew

    @contextmanager
    def _collective(self, wire_bytes: int) -> Iterator[None]:
        """Count one collective's bytes and seconds."""
        start = self.now()
        yield
        self.traffic.communication_seconds += self.now() - start
        self.traffic.wire_bytes += wire_bytes
        self.traffic.collectives += 1

    def now(self) -> float:
        """Read a monotonic clock in seconds, once the device has finished what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def all_gather(self, local: Tensor) -> Tensor:
        """Gather every rank's one-dimensional tensor of n entries as [W, n], on the device of `local`."""
        if self.size == 1:
            return local.unsqueeze(0)
        with self._collective(all_gather_wire(self.size, local.nbytes)):
            gathered, work = start_gather(local.contiguous(), None)
            work.wait()
            return gathered.view(self.size, -1).to(local.device)

    def all_reduce_(self, tensor: Tensor) -> Tensor:
        """Sum `tensor` over the ranks in place, with the same bits on each of them."""
        if self.size == 1:
            return tensor
        with self._collective(all_reduce_wire(self.size, tensor.nbytes)):
            moved = tensor.to(self._wire_device)
            dist.all_reduce(moved)
            return tensor if moved is tensor else tensor.copy_(moved)

    def broadcast_(self, tensor: Tensor) -> Tensor:
        """Overwrite `tensor` with rank 0's."""
        if self.size == 1:
            return tensor
        with self._collective((self.size - 1) * tensor.nbytes):
            moved = tensor.to(self._wire_device)
            dist.broadcast(moved, src=0)
            return tensor if moved is tensor else tensor.copy_(moved)

    def largest(self, numbers: list[float]) -> list[float]:
        """Take the elementwise maximum over the ranks; a control message, whose few bytes are not counted."""
        maxima = torch.tensor(numbers, dtype=torch.float64, device=self._wire_device)
        if self.size > 1:
            self.traffic.collectives += 1
            dist.all_reduce(maxima, dist.ReduceOp.MAX)
        return maxima.tolist()

    def all_true(self, condition: bool) -> bool:
        """Tell if `condition` holds on every rank."""
        return self.largest([0.0 if condition else 1.0]) == [0.0]

    def wait_for_all(self) -> None:
        """Wait at a barrier, so that what follows measures communication and not the slowest rank's computation."""
        if self.size > 1:
            start = self.now()
            self.traffic.collectives += 1
            dist.barrier()
            self.traffic.waiting_seconds += self.now() - start


@contextmanager
def open_world(
    launch: Launch,
    device: torch.device,
    timeout_seconds: float,
    rendezvous: str = "env://",
    alone: bool = False,
    collective_seconds: float = 1800.0,
) -> Iterator[World]:
    """Open the process group of this run, which is destroyed at the end whatever happens.

    The ranks meet at `rendezvous`. A process without a launcher gets a group only with `alone`, which
    DistributedDataParallel needs. A rank that gives no sign of life for `timeout_seconds` ends the run; one that lives
    may keep the others waiting for `collective_seconds`, because it may be training or decoding a data set.

    The store is prefixed by the launcher's attempt, and by how many groups it has served: a group that reuses the keys
    of the group before it fails or hangs more often than not.
    """
    if launch.size == 1 and not launch.launched and not alone:
        yield World(device=device)
        return
    backend = launch.backend(device)
    timeout = timedelta(seconds=max(timeout_seconds, collective_seconds))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store: dist.Store = dist.HashStore()
    rank = launch.rank
    size = launch.size
    if launch.launched or size > 1:
        store, rank, size = next(dist.rendezvous(rendezvous, rank, size, timeout=timeout))
    store = dist.PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    store = dist.PrefixStore(f"group_{store.add(f'groups_of_{rank}', 1)}", store)
    # The store of the signs of life is another connection, for a store serves one thread at a time.
    with heartbeat(store.clone(), rank, size, timeout_seconds) if size > 1 else nullcontext():
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
        _last_group[:] = [dist.group.WORLD]
        try:
            yield World(rank, size, device, backend)
        finally:
            gc.collect()  # futures still alive here can abort the process when the group goes first
            dist.destroy_process_group()
