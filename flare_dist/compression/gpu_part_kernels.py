"""Triton kernels of `gpu_segments`: those of `gpu_kernels` for many segments, each divided into parts of a program.

`programs` is int64 [4, count]: segment, first and last entry, the segment's first program. `segments` is int64 [2,
segment_count]: k, and where the positions begin. Every segment has SCRATCH histograms of its own.
"""

from __future__ import annotations

import triton
import triton.language as tl

from flare_dist.compression.gpu_selection import SCRATCH
from flare_dist.compression.gpu_walks import begin_of_kth, count_from, histogram_of, load_keys, write_from

_PER_SEGMENT = tl.constexpr(SCRATCH)
_MOST_PARTS = tl.constexpr(256)  # of a segment


@triton.jit
def _part(programs, segments, scratch, count, segment_count):
    """Read this program's first and last entry, its segment's k and first position, its histograms and programs."""
    program = tl.program_id(0)
    segment = tl.load(programs + program)
    first = tl.load(programs + count + program)
    stop = tl.load(programs + 2 * count + program)
    eldest = tl.load(programs + 3 * count + program)
    k = tl.load(segments + segment)
    begin = tl.load(segments + segment_count + segment)
    return first, stop, k, begin, scratch + segment * _PER_SEGMENT, eldest


@triton.jit
def _counted_by(totals, eldest):
    """Sum up what the programs from `eldest` on, before this one, have counted."""
    program = eldest + tl.arange(0, _MOST_PARTS)
    return tl.sum(tl.load(totals + program, mask=program < tl.program_id(0), other=0))


@triton.jit(do_not_specialize=["count", "segment_count"])
def count_digits_of_parts(
    vector, scratch, programs, segments, count, segment_count, place: tl.constexpr, tile: tl.constexpr
):
    """Count digit `place` of the keys of a part that begin as the k-th largest of its segment does."""
    first, stop, k, _begin, own, _eldest = _part(programs, segments, scratch, count, segment_count)
    prefix, _rank = begin_of_kth(own, k, place)
    counts = tl.zeros([256], tl.int32)
    for start in range(first, stop, tile):
        counts += histogram_of(load_keys(vector, start, stop, tile), prefix, place)
    digits = tl.arange(0, 256)
    tl.atomic_add(own + 2 + place * 256 + digits, counts.to(tl.int64), mask=counts > 0, sem="relaxed")


@triton.jit(do_not_specialize=["count", "segment_count"])
def count_kept_of_parts(vector, scratch, totals, programs, segments, count, segment_count, tile: tl.constexpr):
    """Count in the first row of `totals` the keys above the k-th largest of the segment, in the second equal ones."""
    first, stop, k, _begin, own, _eldest = _part(programs, segments, scratch, count, segment_count)
    kth, _ties = begin_of_kth(own, k, 4)
    above, tied = count_from(vector, first, stop, kth, tile)
    tl.store(totals + tl.program_id(0), above)
    tl.store(totals + count + tl.program_id(0), tied)


@triton.jit(do_not_specialize=["count", "segment_count"])
def write_positions_of_parts(
    vector, scratch, totals, positions, programs, segments, count, segment_count, tile: tl.constexpr
):
    """Write the ascending positions of each segment's keys above its k-th largest and of the first that equal it."""
    first, stop, k, begin, own, eldest = _part(programs, segments, scratch, count, segment_count)
    kth, ties = begin_of_kth(own, k, 4)
    above = _counted_by(totals, eldest)
    tied = _counted_by(totals + count, eldest)
    write_from(vector, first, stop, kth, ties, above, tied, positions, False, positions + begin, tile)
