"""The exchange of a bucket at density 1, as plain DDP has it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flare_dist.comm.collectives import ProcessGroup, all_reduce_async, rank_and_size
from flare_dist.comm.traffic import all_reduce_wire


def exchange_densely(
    buffer: Tensor,
    group: ProcessGroup | None,
    count: Callable[[int, int, int], None],
    come_back: Callable[[], None],
) -> torch.futures.Future[Tensor]:
    """Take the mean of `buffer` over the ranks; it may be complex, or a sparse tensor if DDP expects one.

    `count` gets bytes on the wire, bytes of this rank and entries. A sparse gradient has other entries on each rank,
    which are summed up first.
    """
    _, size = rank_and_size(group)
    buffer.div_(size)
    if buffer.is_sparse:
        buffer = buffer.coalesce()  # as gloo does itself, before it sends
        nbytes = buffer.indices().nbytes + buffer.values().nbytes
        total = all_reduce_async(torch.tensor([nbytes], device=buffer.device), group).wait()[0]
        count((size - 1) * int(total), nbytes, buffer.values().numel())
    else:
        count(all_reduce_wire(size, buffer.nbytes), buffer.nbytes, buffer.numel())
    reduced = all_reduce_async(buffer, group)

    def take(future: torch.futures.Future[list[Tensor]]) -> Tensor:
        come_back()
        mean = future.value()[0]
        return torch.view_as_complex(mean) if buffer.is_complex() and not mean.is_complex() else mean

    return reduced.then(take)
