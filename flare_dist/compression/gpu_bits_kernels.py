"""Triton kernels of `gpu_bits`: the code of Elias and Fano of one row of positions, and the positions of many rows.

A number lies in a row of bytes as bits.py has it: its whole bytes, lowest first, in planes of k bytes, and the bits
left over behind them in one stream. Then comes the unary part, at byte `unary`. Bits count from the lowest of a byte.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _put(words, bit, number, inside):
    """Set the bits of a number of at most 8 bits from `bit` on, in int32 words that are zero there."""
    wide = number << (bit & 31)
    tl.atomic_or(words + (bit >> 5), wide.to(tl.int32), mask=inside, sem="relaxed")
    carry = (wide >> 32).to(tl.int32)
    tl.atomic_or(words + (bit >> 5) + 1, carry, mask=inside & (carry != 0), sem="relaxed")


@triton.jit(do_not_specialize=["k", "low", "unary"])
def write_code(indices, words, k, low, unary, tile: tl.constexpr):
    """Write ascending indices, int64 [k], into int32 words that are all zero, `low` bits of each as they are."""
    lanes = tl.program_id(0).to(tl.int64) * tile + tl.arange(0, tile)
    inside = lanes < k
    index = tl.load(indices + lanes, mask=inside, other=0)
    whole = low // 8
    rest = low % 8
    for plane in range(whole):
        _put(words, 8 * (lanes + plane * k.to(tl.int64)), (index >> (8 * plane)) & 255, inside)
    left = (index >> (low - rest)) & ((1 << rest) - 1)
    _put(words, 8 * whole * k.to(tl.int64) + rest * lanes, left, inside)
    _put(words, 8 * unary.to(tl.int64) + lanes + (index >> low), (lanes >= 0).to(tl.int64), inside)


@triton.jit
def _ones(row, unary, nbytes, tile: tl.constexpr):
    """Return which bits of the unary part this program looks at, int64, and what they are, int64 0 or 1."""
    bits = tl.program_id(0).to(tl.int64) * tile + tl.arange(0, tile)
    byte = tl.load(row + unary + (bits >> 3), mask=bits < 8 * nbytes.to(tl.int64), other=0)
    return bits, (byte.to(tl.int64) >> (bits & 7)) & 1


@triton.jit(do_not_specialize=["stride", "unary", "nbytes"])
def count_ones(data, totals, stride, unary, nbytes, tile: tl.constexpr):
    """Count the ones in each tile of bits of the unary part of each row; `totals` is int64 [rows, tiles]."""
    _bits, one = _ones(data + tl.program_id(1) * stride.to(tl.int64), unary, nbytes, tile)
    tl.store(totals + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0), tl.sum(one))


@triton.jit
def _low(row, rank, k, low, inside):
    """Read the lowest bits of the numbers of these ranks, int64."""
    whole = low // 8
    rest = low % 8
    number = 0 * rank
    for plane in range(whole):
        byte = tl.load(row + plane * k + rank, mask=inside, other=0)
        number |= byte.to(tl.int64) << (8 * plane)
    at = row + whole * k + (rank * rest >> 3)
    # The second byte may be of the unary part, of which nothing is taken.
    both = tl.load(at, mask=inside, other=0).to(tl.int64) | (tl.load(at + 1, mask=inside, other=0).to(tl.int64) << 8)
    return number | (((both >> (rank * rest & 7)) & ((1 << rest) - 1)) << (low - rest))


@triton.jit(do_not_specialize=["stride", "k", "low", "unary", "nbytes"])
def read_code(data, totals, positions, stride, k, low, unary, nbytes, tile: tl.constexpr):
    """Read the positions of each row, int32 or int64 [rows, k].

    The ones of a damaged row may be fewer: the rest is read as if the first bits behind the end were theirs.
    """
    lanes = tl.arange(0, tile)
    count = k.to(tl.int64)
    row = data + tl.program_id(1) * stride.to(tl.int64)
    own = positions + tl.program_id(1) * count
    counted = totals + tl.program_id(1) * tl.num_programs(0)
    before = tl.full((), 0, tl.int64)
    for start in range(0, tl.program_id(0), tile):
        before += tl.sum(tl.load(counted + start + lanes, mask=start + lanes < tl.program_id(0), other=0))
    bits, one = _ones(row, unary, nbytes, tile)
    rank = before + tl.cumsum(one, 0) - one
    found = (one == 1) & (rank < count)
    number = ((bits - rank) << low) | _low(row, rank, count, low, found)
    tl.store(own + rank, number.to(positions.dtype.element_ty), mask=found)
    if tl.program_id(0) == tl.num_programs(0) - 1:
        for begin in range(before + tl.sum(one), count, tile):
            behind = begin + lanes
            left = behind < count
            high = 8 * nbytes.to(tl.int64) - behind
            damaged = (high << low) | _low(row, behind, count, low, left)
            tl.store(own + behind, damaged.to(positions.dtype.element_ty), mask=left)
