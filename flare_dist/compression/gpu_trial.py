"""A trial of Triton: whether our kernels run on a GPU and are right there."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable

import torch
from torch import Tensor

from flare_dist.compression import elias_fano
from flare_dist.compression.gpu_bits import read_on_gpu, write_on_gpu
from flare_dist.compression.gpu_segments import largest_of_segments, parts_of
from flare_dist.compression.gpu_selection import largest_on_gpu
from flare_dist.compression.gpu_sums import add_row_by_row, add_runs
from flare_dist.compression.segments import Segment

log = logging.getLogger(__name__)

SMALLEST = 2**16  # entries; for shorter vectors launching is what takes time, whatever is launched


def pays(vector: Tensor) -> bool:
    """Tell if `largest_on_gpu` can and should be used for this vector; the first call for a GPU compiles kernels."""
    return vector.is_cuda and vector.dtype == torch.float32 and vector.numel() >= SMALLEST and works(vector.device)


@functools.cache
def works(device: torch.device) -> bool:
    """Tell if Triton is there, runs on this GPU (it needs a C compiler and Python's headers besides) and is right.

    Tried once in a process, on a vector long enough for every kernel, of few distinct values so that ties count.
    """
    draws = torch.Generator(device).manual_seed(0)
    normal = torch.randn(2 * SMALLEST, generator=draws, device=device)
    try:
        for vector, k in ((normal, 500), (normal.mul(8).round(), 500), (normal, SMALLEST)):
            expected = vector.abs().sort(descending=True, stable=True).indices[:k].sort().values
            if not torch.equal(largest_on_gpu(vector, k), expected):
                raise RuntimeError("its selection is not the one of a sort")
        _try_segments(normal.mul(8).round())
        _try_sums(normal[:3000].view(3, 1000))
        _try_positions(normal)
    except Exception as error:  # whatever it is, there is another way
        log.warning("top-k on %s by torch.topk, as Triton cannot be used: %s", device, error)
        return False
    return True


def warm_up(devices: Iterable[torch.device]) -> None:
    """Compile and try the kernels on each of these devices that is a GPU, before backward waits for them."""
    for device in set(devices):
        if device.type == "cuda":
            works(device)


def _try_segments(vector: Tensor) -> None:
    """Raise RuntimeError if what is selected from segments is not what is selected from each."""
    segments = [Segment(3, 70_000, 500), Segment(70_003, 5, 2), Segment(70_008, 2000, 2000)]
    expected = [largest_on_gpu(vector[s.offset : s.offset + s.numel], s.k) + s.offset for s in segments]
    if not torch.equal(largest_of_segments(vector, parts_of(segments, vector.device)), torch.cat(expected)):
        raise RuntimeError("its selection from segments is not the one from each")


def _try_sums(values: Tensor) -> None:
    """Raise RuntimeError if rows are not added up in their order."""
    places = torch.arange(1000, device=values.device) + 400 * torch.arange(3, device=values.device)[:, None]
    sums = []
    for add in (add_runs, add_row_by_row):
        sums.append(torch.zeros(2000, device=values.device))
        add(sums[-1], places, values, 3)
    if not torch.equal(*sums):
        raise RuntimeError("its sums are not those of one row after another")


def _try_positions(vector: Tensor) -> None:
    """Raise RuntimeError if positions are not coded as they are without Triton, or not read again from many rows."""
    n = vector.numel()
    for k in (3000, 100):  # of the fewer more than eight bits each are written as they are
        rows = vector.view(2, -1).topk(k).indices.sort().values * 2 + 1
        codes = torch.stack([elias_fano.write(row, n) for row in rows])
        own = torch.stack([write_on_gpu(row, n) for row in rows])
        if not (torch.equal(own, codes) and torch.equal(read_on_gpu(codes, n, k), rows.int())):
            raise RuntimeError("its codes of positions are not those of PyTorch")
