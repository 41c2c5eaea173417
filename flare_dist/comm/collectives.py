"""Collectives of a process group, for a hook inside backward and for what the ranks agree on beside it.

Everything works without a process group, too, as a single rank. Those of a run are in world.py.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import GradBucket as GradBucket
from torch.distributed import ProcessGroup as ProcessGroup
from torch.distributed import Store as Store
from torch.distributed import Work as Work
from torch.distributed.algorithms.ddp_comm_hooks import debugging_hooks as debugging_hooks
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks as default_hooks
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook as powerSGD_hook

# torch 2.14 gave it this name and warns of the old one; older versions have only that.
all_gather_flat = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def rank_and_size(group: ProcessGroup | None) -> tuple[int, int]:
    """Return this process's rank in a group (None = all ranks), and the group's size; (0, 1) if there is no group."""
    if group is None and not dist.is_initialized():
        return 0, 1
    return dist.get_rank(group), dist.get_world_size(group)


def backend_of(group: ProcessGroup | None) -> str:
    """Return what a group (None = all ranks) communicates by, gloo or nccl."""
    return str(dist.get_backend(group))


def gather_objects(own: Any, group: ProcessGroup | None, device: torch.device | None = None) -> list[Any]:
    """Gather what every rank of the group (None = all) gives, by rank; pickled, and all of them call it together.

    NCCL moves it through the current GPU, which is made `device`: by default all ranks of a machine have the first.
    """
    size = rank_and_size(group)[1]
    if size == 1:
        return [own]
    gathered: list[Any] = [None] * size
    with _current(device):
        dist.all_gather_object(gathered, own, group)
    return gathered


def object_from(source: int, own: Any, group: ProcessGroup | None, device: torch.device | None = None) -> Any:
    """Return what rank `source` of the group gives; pickled, and all ranks of it call it together."""
    held = [own]
    with _current(device):
        dist.broadcast_object_list(held, group_src=source, group=group)
    return held[0]


def _current(device: torch.device | None) -> AbstractContextManager[object]:
    """Make a GPU the current one, through which NCCL moves objects; anything else changes nothing."""
    return torch.cuda.device(device) if device is not None and device.type == "cuda" else nullcontext()


def ranks_of(group: ProcessGroup | None) -> list[int]:
    """Return the ranks of a group (None = all), as they are numbered among all."""
    return dist.get_process_group_ranks(group)


def group_of(ranks: list[int]) -> ProcessGroup | None:
    """Return a group of these ranks, which call it together; None if they are all there are."""
    if sorted(ranks) == list(range(rank_and_size(None)[1])):
        return None
    made = dist.new_group(sorted(ranks), use_local_synchronization=True)
    assert isinstance(made, ProcessGroup)
    return made


def broadcast_from_first(tensor: Tensor, group: ProcessGroup | None) -> None:
    """Make a tensor that of the first rank of the group (None = all), in place."""
    dist.broadcast(tensor, src=ranks_of(group)[0], group=group)


def alone_group() -> tuple[int, ProcessGroup]:
    """Return this rank and a group of it alone; all ranks call it together."""
    rank, size = rank_and_size(None)
    groups = [dist.new_group([member]) for member in range(size)]
    own = groups[rank]
    assert isinstance(own, ProcessGroup)
    return rank, own


# Groups that are held beyond their end, the one of all ranks first: a gloo thread that drops the last reference, with
# the callback of a future, waits for itself and aborts the process.
_held: list[ProcessGroup | None] = []


def hold(group: ProcessGroup | None) -> None:
    """Hold a group (None = all), and that of all ranks, until there is another one of all ranks."""
    if not _held or _held[0] is not dist.group.WORLD:
        _held[:] = [dist.group.WORLD]
    if group is not None and group not in _held:
        _held.append(group)


def start_gather(local: Tensor, group: ProcessGroup | None) -> tuple[Tensor, dist.Work]:
    """Start to gather the tensors of every rank one after another; they are there once the work is done.

    gloo moves tensors of a GPU through the CPU, where it leaves the result.
    """
    if local.is_cuda and backend_of(group) == "gloo":
        local = local.cpu()
    hold(group)
    gathered = local.new_empty(rank_and_size(group)[1] * local.numel())
    work = all_gather_flat(gathered, local, group=group, async_op=True)
    assert isinstance(work, dist.Work), "this rank is not of the group"
    return gathered, work


def start_reduce(tensor: Tensor, group: ProcessGroup | None) -> dist.Work:
    """Start to sum `tensor` over the ranks, in place; the sum is there once the work is done."""
    hold(group)
    work = dist.all_reduce(tensor, group=group, async_op=True)
    assert work is not None, "this rank is not of the group"
    return work
