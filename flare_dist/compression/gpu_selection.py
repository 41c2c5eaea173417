"""Exact top-k on a GPU: two readings of the vector to find candidates, and a radix selection among those.

A sample suggests a bound that somewhat more than k magnitudes reach. They are counted, then copied in order (Merrill
and Garland's reduce-then-scan), and the k-th largest of them is found digit by digit (Alabi et al. 2012, "Fast
k-selection algorithms for graphics processing units"). If the sample misled, if ties overflow the room for
candidates or if k is a large part of the vector, the same kernels read the whole of it. Which it is, the device
decides: nothing here waits for it, and results have sizes known beforehand.

This module does not import Triton, so that selecting on a CPU needs none and compiles nothing.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SCRATCH = 2 + 4 * 256  # int64 of a selection: two numbers, and a histogram of each digit
_SAMPLE = 2**14  # entries that one program holds at once
_PROGRAMS_PER_PROCESSOR = 7  # as many as the registers of the kernels that read everything leave room for
_TILE = 1024  # entries that a program scans at once, eight a thread
_READ = 2048  # the same of kernels that only count
INTEGERS = {"enable_fp_fusion": True}  # of no effect on them, but Triton 3.9 warns of a launch that leaves it open


def largest_on_gpu(vector: Tensor, k: int, sample: int = _SAMPLE, programs: int | None = None) -> Tensor:
    """Select the k largest magnitudes of a finite float32 vector, the first of equals; ascending int64 [k].

    `sample`, a power of two, is how many entries suggest the bound; `programs` at most 1024 run at once. Works on the
    current stream of the vector's GPU; on a CPU vector only under Triton's interpreter.
    """
    from flare_dist.compression import gpu_kernels as kernels

    n = vector.numel()
    device = vector.device
    assert 0 <= k <= n
    if k in (0, n):
        return torch.arange(k, device=device)
    if programs is None:
        programs = _PROGRAMS_PER_PROCESSOR * torch.cuda.get_device_properties(device).multi_processor_count
    grid = (min(programs, kernels.MOST_PROGRAMS.value),)
    bits = vector.detach().contiguous().view(torch.int32)
    scratch = torch.zeros(SCRATCH, dtype=torch.int64, device=device)
    totals = torch.empty(2 * grid[0], dtype=torch.int64, device=device)
    positions = torch.empty(k, dtype=torch.int64, device=device)
    sampled = n >= 4 * sample and k * 16 <= n
    stride, rank, most = _of_sample(n, k, sample) if sampled else (0, 0, 0)
    capacity = most * stride
    found = torch.empty(capacity, dtype=torch.int32, device=device)
    places = torch.empty(capacity, dtype=torch.int64, device=device)
    with torch.cuda.device_of(vector):
        if sampled:
            kernels.find_bound[(1,)](bits, scratch, stride, rank, most, sample, num_warps=32, **INTEGERS)
            kernels.count_candidates[grid](bits, scratch, totals, n, _READ, **INTEGERS)
            kernels.gather_candidates[grid](bits, scratch, totals, found, places, n, k, capacity, _TILE, **INTEGERS)
        for place in range(4):
            kernels.count_digits[grid](bits, scratch, found, n, k, capacity, place, _READ, **INTEGERS)
        kernels.count_kept[grid](bits, scratch, totals, found, n, k, capacity, _READ, **INTEGERS)
        kernels.write_positions[grid](
            bits, scratch, totals, found, places, positions, n, k, capacity, _TILE, **INTEGERS
        )
    return positions


def _of_sample(n: int, k: int, sample: int) -> tuple[int, int, int]:
    """Return a sample's stride, its rank of a likely lower bound on the k-th largest, and how many may reach the bound.

    The bound is four standard deviations below the estimate; the last is far above what is expected.
    """
    expected = sample * k / n
    rank = math.ceil(expected + 4 * math.sqrt(expected))
    return n // sample, rank, 2 * (rank + 8)
