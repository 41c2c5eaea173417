"""Triton kernels of `gpu_selection`: exact selection of the k largest magnitudes with every size known beforehand.

The kernels run one after another and communicate through `scratch`, int64 [SCRATCH] that begins as zeros: the bound
that makes a key a candidate, the number of candidates, a histogram of each digit; and through `totals`, int64 [2,
programs], what each program has counted. Offsets that may pass 2^31 are int64 scalars added to pointers; within a tile
int32 is enough. What is compiled but no kernel is called by the kernels.
"""

from __future__ import annotations

import triton
import triton.language as tl

from flare_dist.compression.gpu_walks import begin_of_kth, count_from, descend, histogram_of, load_keys, write_from

MOST_PROGRAMS = tl.constexpr(1024)  # a power of two
_UNIT = tl.constexpr(1024)  # entries; programs begin at multiples of it, so that they can read 16 bytes at once


@triton.jit
def _share(length):
    """Tell where this program begins and stops. Programs follow each other in the vector: positions stay sorted."""
    units = tl.cdiv(length.to(tl.int64), _UNIT)
    each = tl.cdiv(units, tl.num_programs(0)) * _UNIT
    start = tl.program_id(0) * each  # behind the end if there are more programs than units
    return start, tl.minimum(start + each, length)


@triton.jit
def _counted_before(totals):
    """Sum up what the programs before this one have counted."""
    program = tl.arange(0, MOST_PROGRAMS)
    return tl.sum(tl.load(totals + program, mask=program < tl.program_id(0), other=0))


@triton.jit
def _selected_from(vector, scratch, found, n, k, capacity):
    """Return the candidates and their number if they are enough and there was room for them, else the whole vector."""
    count = tl.load(scratch + 1)
    suffice = (count >= k) & (count <= capacity)
    source = vector
    length = n.to(tl.int64)
    if suffice:
        source = found
        length = count
    return source, length, suffice


@triton.jit(do_not_specialize=["stride", "rank", "most"])
def find_bound(vector, scratch, stride, rank, most, sample: tl.constexpr):
    """Find the `rank`-th largest key of a sample, rounded down to two digits, in one program.

    It is -1, and nothing a candidate, if more than `most` of the sample reach it, for ties would fill the room.
    """
    bits = tl.load(vector + tl.arange(0, sample).to(tl.int64) * stride)
    keys = bits.to(tl.uint32, bitcast=True) << 1
    prefix = tl.full((), 0, tl.uint32)
    left = rank.to(tl.int64)
    for place in tl.static_range(2):
        digit, left = descend(histogram_of(keys, prefix, place), left)
        prefix = prefix * 256 + digit
    bound = prefix << 16
    reaching = tl.sum((keys >= bound).to(tl.int32))
    tl.store(scratch, tl.where(reaching > most, -1, bound.to(tl.int64)))


@triton.jit(do_not_specialize=["n"])
def count_candidates(vector, scratch, totals, n, tile: tl.constexpr):
    """Count the keys that reach the bound."""
    bound = tl.load(scratch)
    first, stop = _share(n)
    stop = tl.where(bound < 0, first, stop)
    count = tl.full((), 0, tl.int64)
    for start in range(first, stop, tile):
        keys = load_keys(vector, start, stop, tile)
        reached = (tl.arange(0, tile) < stop - start) & (keys >= bound.to(tl.uint32))
        count += tl.sum(reached.to(tl.int32))
    tl.store(totals + tl.program_id(0), count)
    tl.atomic_add(scratch + 1, count, sem="relaxed")


@triton.jit(do_not_specialize=["n", "k", "capacity"])
def gather_candidates(vector, scratch, totals, found, places, n, k, capacity, tile: tl.constexpr):
    """Copy the bits of the candidates to `found` and their positions to `places`, in order."""
    lanes = tl.arange(0, tile)
    bound = tl.load(scratch).to(tl.uint32)
    _source, _length, suffice = _selected_from(vector, scratch, found, n, k, capacity)
    begin = _counted_before(totals)
    first, stop = _share(n)
    stop = tl.where(suffice, stop, first)
    for start in range(first, stop, tile):
        keys = load_keys(vector, start, stop, tile)
        reached = (lanes < stop - start) & (keys >= bound)
        count = tl.sum(reached.to(tl.int32))
        if count > 0:
            rank = tl.cumsum(reached.to(tl.int32), 0) - 1
            tl.store(found + begin + rank, (keys >> 1).to(tl.int32, bitcast=True), mask=reached)
            tl.store(places + begin + rank, start + lanes, mask=reached)
        begin += count


@triton.jit(do_not_specialize=["n", "k", "capacity"])
def count_digits(vector, scratch, found, n, k, capacity, place: tl.constexpr, tile: tl.constexpr):
    """Count digit `place` of the keys that begin as the k-th largest does."""
    prefix, _rank = begin_of_kth(scratch, k, place)
    source, length, _suffice = _selected_from(vector, scratch, found, n, k, capacity)
    counts = tl.zeros([256], tl.int32)
    first, stop = _share(length)
    for start in range(first, stop, tile):
        counts += histogram_of(load_keys(source, start, stop, tile), prefix, place)
    digits = tl.arange(0, 256)
    tl.atomic_add(scratch + 2 + place * 256 + digits, counts.to(tl.int64), mask=counts > 0, sem="relaxed")


@triton.jit(do_not_specialize=["n", "k", "capacity"])
def count_kept(vector, scratch, totals, found, n, k, capacity, tile: tl.constexpr):
    """Count in the first row of `totals` the keys above the k-th largest, in the second those that equal it."""
    kth, _ties = begin_of_kth(scratch, k, 4)
    source, length, _suffice = _selected_from(vector, scratch, found, n, k, capacity)
    first, stop = _share(length)
    above, tied = count_from(source, first, stop, kth, tile)
    tl.store(totals + tl.program_id(0), above)
    tl.store(totals + tl.num_programs(0) + tl.program_id(0), tied)


@triton.jit(do_not_specialize=["n", "k", "capacity"])
def write_positions(vector, scratch, totals, found, places, positions, n, k, capacity, tile: tl.constexpr):
    """Write the ascending positions of the keys above the k-th largest and of the first that equal it, k together."""
    kth, ties = begin_of_kth(scratch, k, 4)
    source, length, suffice = _selected_from(vector, scratch, found, n, k, capacity)
    above = _counted_before(totals)
    tied = _counted_before(totals + tl.num_programs(0))
    first, stop = _share(length)
    write_from(source, first, stop, kth, ties, above, tied, places, suffice, positions, tile)
