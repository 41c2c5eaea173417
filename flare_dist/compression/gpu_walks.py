"""What the kernels of `gpu_kernels` and `gpu_part_kernels` share: keys, their digits, and walks over a program's part.

A float's bits without the sign, shifted left once, are its *key*: keys are ordered as magnitudes are, subnormal ones as
well. A key's four digits have eight bits each, the highest first. The vector lies before the kernels as int32 bits.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_keys(source, start, stop, tile: tl.constexpr):
    """Load the keys of a tile, zeros from `stop` on. A whole tile takes no mask, which would forbid 16-byte loads."""
    lanes = tl.arange(0, tile)
    if start + tile <= stop:
        bits = tl.load(source + start + lanes)
    else:
        bits = tl.load(source + start + lanes, mask=lanes < stop - start, other=0)
    return bits.to(tl.uint32, bitcast=True) << 1


@triton.jit
def histogram_of(keys, prefix, place: tl.constexpr):
    """Counts of digit `place` of the keys that begin with `prefix`; the other keys are counted under digit zero."""
    digits = keys >> (24 - 8 * place)
    return tl.histogram(tl.where((digits >> 8) == prefix, digits & 255, 0).to(tl.int32), 256)


@triton.jit
def descend(histogram, rank):
    """Find the digit of the key of this rank from the top, and its rank among the keys of the same digit.

    The count of digit zero is not needed: what is not among the other digits is there.
    """
    at_least = tl.cumsum(histogram.to(tl.int64), 0, reverse=True)
    digit = tl.sum((at_least >= rank).to(tl.int32)) - 1
    return digit.to(tl.uint32), rank - tl.max(tl.where(at_least < rank, at_least, 0))


@triton.jit
def begin_of_kth(scratch, k, digits: tl.constexpr):
    """Find the first digits of the k-th largest key, and its rank among the keys that begin with them."""
    prefix = tl.full((), 0, tl.uint32)
    rank = k.to(tl.int64)
    for place in tl.static_range(digits):
        digit, rank = descend(tl.load(scratch + 2 + place * 256 + tl.arange(0, 256)), rank)
        prefix = prefix * 256 + digit
    return prefix, rank


@triton.jit
def count_from(source, first, stop, kth, tile: tl.constexpr):
    """Count the keys of one program above the k-th largest, and those that equal it."""
    above = tl.full((), 0, tl.int64)
    tied = tl.full((), 0, tl.int64)
    for start in range(first, stop, tile):
        keys = load_keys(source, start, stop, tile)
        above += tl.sum((keys > kth).to(tl.int32))
        tied += tl.sum(((tl.arange(0, tile) < stop - start) & (keys == kth)).to(tl.int32))
    return above, tied


@triton.jit
def write_from(source, first, stop, kth, ties, above, tied, places, moved, positions, tile: tl.constexpr):
    """Write what one program keeps: keys above the k-th largest, and those that equal it while fewer than `ties` are.

    Before it there are so many `above` it and `tied` ones. Keys that were `moved` have their positions in `places`.
    """
    lanes = tl.arange(0, tile)
    for start in range(first, stop, tile):
        keys = load_keys(source, start, stop, tile)
        higher = keys > kth
        equal = (lanes < stop - start) & (keys == kth)
        both = higher.to(tl.int32) + (equal.to(tl.int32) << 16)  # two counts in one scan
        count = tl.sum(both)
        if count > 0:
            seen = tl.cumsum(both, 0)
            room = tl.maximum(tl.minimum(ties - tied, tile), 0).to(tl.int32)  # for ties from here on
            kept = higher | (equal & ((seen >> 16) <= room))
            place = tl.load(places + start + lanes, mask=kept, other=0) if moved else start + lanes
            rank = (seen & 0xFFFF) + tl.minimum(seen >> 16, room) - 1
            tl.store(positions + above + tl.minimum(tied, ties) + rank, place, mask=kept)
        above += count & 0xFFFF
        tied += count >> 16
