"""Exact top-k of many segments of a vector at once on a GPU: launches do not grow with the number of tensors.

Each program looks at a part of one segment. The k-th largest key of every segment is found digit by digit, by counting
in the whole segment each time, as `gpu_selection` does when a sample misleads it. Six readings of a vector take less
time than the launches of its tensors one by one, but for very long segments, which stay with `gpu_selection`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from flare_dist.compression.gpu_selection import INTEGERS, SCRATCH
from flare_dist.compression.segments import Segment
from flare_dist.devices import moved_unwaited

LONG = 2**22  # entries from which on a segment is selected from alone
_PART = 2**14  # entries of a program; a segment has no more than 256 parts
_TILE = 1024


class Parts(NamedTuple):
    """The parts of segments, and where each segment's positions go; int64 on the device."""

    programs: Tensor  # [4, programs]: segment, first and last entry (not included), the segment's first program
    segments: Tensor  # [2, segments]: k, and where its positions begin
    kept: int


def parts_of(segments: Sequence[Segment], device: torch.device) -> Parts:
    """Divide segments of less than LONG entries, one block each; their positions follow one another."""
    programs: list[tuple[int, int, int, int]] = []
    begin = 0
    own = []
    for number, segment in enumerate(segments):
        first = len(programs)
        end = segment.offset + segment.numel
        starts = range(segment.offset, end, _PART)
        programs += [(number, start, min(start + _PART, end), first) for start in starts]
        own.append((segment.k, begin))
        begin += segment.k

    def table(rows: Sequence[tuple[int, ...]]) -> Tensor:
        return moved_unwaited(torch.tensor(rows, dtype=torch.int64).T.contiguous(), device)

    return Parts(table(programs), table(own), begin)


def largest_of_segments(vector: Tensor, parts: Parts) -> Tensor:
    """Select the largest magnitudes of each segment of a float32 vector, the first of equals; int64 [kept].

    They are ascending within each segment. On a CPU only under Triton's interpreter.
    """
    from flare_dist.compression import gpu_part_kernels as kernels

    programs, segments, kept = parts
    grid = (programs.shape[1],)
    bits = vector.detach().contiguous().view(torch.int32)
    scratch = torch.zeros(segments.shape[1] * SCRATCH, dtype=torch.int64, device=vector.device)
    totals = torch.empty(2 * grid[0], dtype=torch.int64, device=vector.device)
    positions = torch.empty(kept, dtype=torch.int64, device=vector.device)
    sizes = (grid[0], segments.shape[1])
    whole = {"tile": _TILE, **INTEGERS}
    with torch.cuda.device_of(vector):
        for place in range(4):
            kernels.count_digits_of_parts[grid](bits, scratch, programs, segments, *sizes, place, **whole)
        kernels.count_kept_of_parts[grid](bits, scratch, totals, programs, segments, *sizes, **whole)
        kernels.write_positions_of_parts[grid](bits, scratch, totals, positions, programs, segments, *sizes, **whole)
    return positions
