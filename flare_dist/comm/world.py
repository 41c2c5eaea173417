"""The ranks of a run and their collectives.

`World` is the ranks of this run that hold the same part of every vector: all of them, or one of each host if hosts have
several ranks (host.py). With one rank its collectives return their input, so nothing above this module asks whether
there is a process group. It counts what the collectives moved: `wire_bytes` over all W ranks, padding included, as
all-gather W(W-1)B for B bytes a rank, ring all-reduce 2(W-1)B, broadcast (W-1)B.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from flare_dist.comm.collectives import ProcessGroup, start_gather
from flare_dist.comm.host import Host
from flare_dist.comm.rank_progress import RankProgress
from flare_dist.comm.traffic import Traffic, all_gather_wire, all_reduce_wire


class World:
    """The ranks of a run, and the bytes that their collectives moved.

    `rank` of `size` is this rank as its launcher counts, `host_number` of `hosts` the host that it belongs to.
    """

    def __init__(
        self,
        host_number: int = 0,
        hosts: int = 1,
        device: torch.device | None = None,
        backend: str = "",
        progress: RankProgress | None = None,
        meeting_group: ProcessGroup | None = None,
        group: ProcessGroup | None = None,
        host: Host | None = None,
    ) -> None:
        self.host = host or Host()
        self.host_number = host_number
        self.hosts = hosts
        self.size = hosts * self.host.shards
        self.rank = host_number * self.host.shards + self.host.shard
        self._group = group  # the ranks of the same shard; None = all
        self.device = device or torch.device("cpu")
        self.backend = backend
        self.progress = progress or RankProgress()
        self._meeting_group = meeting_group
        self._wire_device = self.device if backend == "nccl" else torch.device("cpu")
        self.traffic = Traffic()  # of the round: rounds/ledger.py begins anew

    @property
    def on_batch(self) -> Callable[[], None] | None:
        """Return what notes a batch as a sign that this rank advances; nobody waits for the only rank."""
        return self.progress.advance if self.size > 1 else None

    @contextmanager
    def _collective(self, wire_bytes: int) -> Iterator[None]:
        """Count one collective's bytes and seconds."""
        start = self.now()
        self.progress.arrive()
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
        return self._gather(local, self.hosts, self._group)

    def gather_from_all(self, local: Tensor) -> Tensor:
        """Gather the tensors of every rank of every host, by `rank`, as [size, n]; a control message."""
        return self._gather(local, self.size, None)

    def _gather(self, local: Tensor, size: int, group: ProcessGroup | None) -> Tensor:
        if size == 1:
            return local.unsqueeze(0)
        with self._collective(all_gather_wire(size, local.nbytes)):
            gathered, work = start_gather(local.to(self._wire_device).contiguous(), group)
            work.wait()
            return gathered.view(size, -1).to(local.device)

    def all_reduce_(self, tensor: Tensor) -> Tensor:
        """Sum `tensor` over the ranks in place, with the same bits on each of them."""
        if self.hosts == 1:
            return tensor
        with self._collective(all_reduce_wire(self.hosts, tensor.nbytes)):
            moved = tensor.to(self._wire_device)
            dist.all_reduce(moved, group=self._group)
            return tensor if moved is tensor else tensor.copy_(moved)

    def broadcast_(self, tensor: Tensor) -> Tensor:
        """Overwrite `tensor` with that of host 0."""
        return self._broadcast_(tensor, self.hosts, self.host.shard, self._group)

    def broadcast_to_all_(self, tensor: Tensor) -> Tensor:
        """Overwrite `tensor` with that of rank 0 on every rank of every host."""
        return self._broadcast_(tensor, self.size, 0, None)

    def _broadcast_(self, tensor: Tensor, size: int, source: int, group: ProcessGroup | None) -> Tensor:
        if size == 1:
            return tensor
        with self._collective((size - 1) * tensor.nbytes):
            moved = tensor.to(self._wire_device)
            dist.broadcast(moved, src=source, group=group)
            return tensor if moved is tensor else tensor.copy_(moved)

    def largest(self, numbers: list[float]) -> list[float]:
        """Take the elementwise maximum over all ranks; a control message, whose few bytes are not counted."""
        maxima = torch.tensor(numbers, dtype=torch.float64, device=self._wire_device)
        if self.size > 1:
            self.traffic.collectives += 1
            self.progress.arrive()
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
            self.meet()
            self.traffic.waiting_seconds += self.now() - start

    def meet(self) -> None:
        """Wait for all ranks, however long one takes that lives and advances: the time of a collective is limited.

        Raises RuntimeError if one of them dies, and the heartbeat finds one that has stopped.
        """
        if self._meeting_group is not None:
            self.progress.arrive()
            dist.barrier(group=self._meeting_group)
