"""The exchange of a bucket at density 1, as plain DDP has it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flare_dist.comm.collectives import ProcessGroup, rank_and_size, start_reduce
from flare_dist.comm.traffic import all_reduce_wire
from flare_dist.hook.side_streams import SideStreams


def exchange_densely(
    buffer: Tensor,
    group: ProcessGroup | None,
    count: Callable[[int, int, int], None],
    side_streams: SideStreams,
    look: Callable[[Tensor], None],
) -> torch.futures.Future[Tensor]:
    """Take the mean of `buffer` over the ranks; it may be complex, or a sparse tensor if DDP expects one.

    `count` gets bytes on the wire, bytes of this rank and entries; `look` gets the mean. A sparse gradient has other
    entries on each rank, which are summed up first.
    """
    _, size = rank_and_size(group)
    buffer.div_(size)
    if buffer.is_sparse:
        buffer = buffer.coalesce()  # as gloo does itself, before it sends
        nbytes = buffer.indices().nbytes + buffer.values().nbytes
        bytes_of_all = torch.tensor([nbytes], device=buffer.device)
        start_reduce(bytes_of_all, group).wait()
        count((size - 1) * int(bytes_of_all), nbytes, buffer.values().numel())
    else:
        count(all_reduce_wire(size, buffer.nbytes), buffer.nbytes, buffer.numel())
    work = start_reduce(buffer, group)

    def take() -> Tensor:
        look(buffer)
        return buffer

    return side_streams.behind(work, buffer.device, take)
