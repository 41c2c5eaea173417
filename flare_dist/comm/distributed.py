"""The process group and every collective of the package.

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
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import GradBucket as GradBucket
from torch.distributed import ProcessGroup as ProcessGroup
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks as default_hooks
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook as powerSGD_hook

from flare_dist.comm.heartbeat import heartbeat

# torch 2.14 gave it this name and warns of the old one; older versions have only that.
all_gather_flat = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor

# Held beyond its end: a gloo thread that drops the last reference, with a callback, waits for itself and aborts.
_last_group: list[Any] = []


@dataclass(frozen=True)
class Launch:
    """What the launcher (torchrun, accelerate, deepspeed) says of this process; a single rank where it says nothing."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    launched: bool = False  # by a launcher, possibly as the only rank

    @classmethod
    def from_environment(cls) -> Launch:
        size = int(os.environ.get("WORLD_SIZE", "1"))
        return cls(
            rank=int(os.environ.get("RANK", "0")),
            size=size,
            local_rank=int(os.environ.get("LOCAL_RANK", "0")),
            # the deepspeed launcher writes LOCAL_SIZE
            local_size=int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", str(size)))),
            launched="LOCAL_RANK" in os.environ,
        )

    def device(self, kind: str) -> torch.device:
        """This rank's device of `kind` cpu or cuda; ranks share GPUs where there are fewer of them."""
        return torch.device(kind, self.local_rank % torch.cuda.device_count()) if kind == "cuda" else torch.device(kind)

    def backend(self, device: torch.device) -> str:
        """NCCL where every local rank has a GPU of its own (NCCL refuses a shared one), otherwise gloo."""
        own_gpu = device.type == "cuda" and self.local_size <= torch.cuda.device_count()
        return "nccl" if own_gpu else "gloo"


def all_gather_wire(size: int, nbytes: int) -> int:
    """What moves over all ranks when each of `size` sends its `nbytes` to all others."""
    return size * (size - 1) * nbytes


def all_reduce_wire(size: int, nbytes: int) -> int:
    """What moves over all ranks when a ring of `size` sums up `nbytes`."""
    return 2 * (size - 1) * nbytes


@dataclass
class Traffic:
    """What the collectives of this rank moved and took."""

    wire_bytes: int = 0
    collectives: int = 0
    communication_seconds: float = 0.0
    waiting_seconds: float = 0.0


class World:
    """The ranks of a run, and the bytes that their collectives moved."""

    def __init__(self, rank: int = 0, size: int = 1, device: torch.device | None = None, backend: str = "") -> None:
        self.rank = rank
        self.size = size
        self.device = device or torch.device("cpu")
        self._wire_device = self.device if backend == "nccl" else torch.device("cpu")
        self.traffic = Traffic()

    def take_traffic(self) -> Traffic:
        """What moved since the last call."""
        moved, self.traffic = self.traffic, Traffic()
        return moved

    @contextmanager
    def _collective(self, wire_bytes: int) -> Iterator[None]:
        """Count one collective's bytes and seconds."""
        start = self.now()
        yield
        self.traffic.communication_seconds += self.now() - start
        self.traffic.wire_bytes += wire_bytes
        self.traffic.collectives += 1

    def now(self) -> float:
        """Seconds on a monotonic clock, once the device has finished what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def all_gather(self, local: Tensor) -> Tensor:
        """[W, n] from every rank's one-dimensional tensor of n entries, on the device of `local`."""
        if self.size == 1:
            return local.unsqueeze(0)
        with self._collective(all_gather_wire(self.size, local.nbytes)):
            sent = local.to(self._wire_device).contiguous()
            gathered = torch.empty(self.size * sent.numel(), dtype=sent.dtype, device=sent.device)
            all_gather_flat(gathered, sent)
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
        """Elementwise maximum over the ranks; a control message, whose few bytes are not counted."""
        maxima = torch.tensor(numbers, dtype=torch.float64, device=self._wire_device)
        if self.size > 1:
            self.traffic.collectives += 1
            dist.all_reduce(maxima, dist.ReduceOp.MAX)
        return maxima.tolist()

    def all_true(self, condition: bool) -> bool:
        """True where `condition` holds on every rank."""
        return self.largest([0.0 if condition else 1.0]) == [0.0]

    def wait_for_all(self) -> None:
        """A barrier, so that what follows measures communication and not the slowest rank's computation."""
        if self.size > 1:
            start = self.now()
            self.traffic.collectives += 1
            dist.barrier()
            self.traffic.waiting_seconds += self.now() - start


def rank_and_size(group: ProcessGroup | None) -> tuple[int, int]:
    """This process's rank among the ranks of a group (None = all), and their number; (0, 1) if there is no group."""
    if group is None and not dist.is_initialized():
        return 0, 1
    return dist.get_rank(group), dist.get_world_size(group)


def all_equal(number: int, group: ProcessGroup | None) -> bool:
    """True where every rank of the group (None = all) has the same number; all of them call it together."""
    if rank_and_size(group)[1] == 1:
        return True
    device = "cuda" if dist.get_backend(group) == "nccl" else "cpu"
    extremes = torch.tensor([number, -number], device=device)
    dist.all_reduce(extremes, dist.ReduceOp.MAX, group)
    return bool(extremes.sum() == 0)


def gather_objects(own: Any, group: ProcessGroup | None) -> list[Any]:
    """Gather what every rank of the group (None = all) gives, by rank; pickled, and all of them call it together."""
    size = rank_and_size(group)[1]
    if size == 1:
        return [own]
    gathered: list[Any] = [None] * size
    dist.all_gather_object(gathered, own, group)
    return gathered


def alone_group() -> tuple[int, ProcessGroup]:
    """(this rank, a group of it alone); every rank calls it together."""
    rank, size = rank_and_size(None)
    groups = [dist.new_group([member]) for member in range(size)]
    own = groups[rank]
    assert isinstance(own, ProcessGroup)
    return rank, own


def all_gather_async(local: Tensor, group: ProcessGroup | None) -> tuple[Tensor, torch.futures.Future[Any]]:
    """The tensors of every rank one after another, and a future of their arrival; for a hook inside backward.

    gloo moves tensors of a GPU through the CPU, where it leaves the result: its futures know nothing of streams.
    """
    if local.is_cuda and dist.get_backend(group) == "gloo":
        local = local.cpu()
    gathered = local.new_empty(rank_and_size(group)[1] * local.numel())
    work = all_gather_flat(gathered, local, group=group, async_op=True)
    assert work is not None, "this rank is not of the group"
    return gathered, work.get_future()


def all_reduce_async(tensor: Tensor, group: ProcessGroup | None) -> torch.futures.Future[Any]:
    """A future of the sum of `tensor` over the ranks, in place; for a hook inside backward."""
    work = dist.all_reduce(tensor, group=group, async_op=True)
    assert work is not None, "this rank is not of the group"
    return work.get_future()


@contextmanager
def open_world(
    launch: Launch,
    device: torch.device,
    timeout_seconds: float,
    rendezvous: str = "env://",
    alone: bool = False,
    collective_seconds: float = 1800.0,
) -> Iterator[World]:
    """The process group of this run, destroyed at the end whatever happens; `rendezvous` says where the ranks meet.

    A process without a launcher gets one only where it wants one `alone`, as DistributedDataParallel does. A rank that
    gives no sign of life for `timeout_seconds` ends the run; one that lives may keep the others waiting for
    `collective_seconds`, because it may be training or decoding a data set.

    The store is prefixed by the launcher's attempt: a restarted group that reuses the keys of the group before it
    fails or hangs more often than not.
    """
    if launch.size == 1 and not launch.launched and not alone:
        yield World(device=device)
        return
    backend = launch.backend(device)
    timeout = timedelta(seconds=max(timeout_seconds, collective_seconds))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store: dist.Store = dist.HashStore()
    rank, size = launch.rank, launch.size
    if launch.launched or size > 1:
        store, rank, size = next(dist.rendezvous(rendezvous, rank, size, timeout=timeout))
    store = dist.PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    # The store of the signs of life is another connection, for a store serves one thread at a time.
    with heartbeat(store.clone(), rank, size, timeout_seconds) if size > 1 else nullcontext():
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
        _last_group[:] = [dist.group.WORLD]
        try:
            yield World(rank, size, device, backend)
        finally:
            gc.collect()  # futures still alive here can abort the process when the group goes first
            dist.destroy_process_group()
