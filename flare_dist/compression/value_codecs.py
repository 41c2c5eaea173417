"""Value codecs: the kept values as bytes whose number follows from how many there are and in how many groups.

A group is what shares one table of levels: the entries of one tensor, or a block of consecutive entries. Tables are
sent as bfloat16, which has the range of float32. What a codec loses goes back into the residual, because error feedback
takes off what `decode` gives and not what was to be sent. A group of zeros is decoded as zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from flare_dist.compression.bits import pack, packed_nbytes, unpack
from flare_dist.devices import moved_unwaited


class Groups(NamedTuple):
    """To which of `number` groups each value belongs: int64 [k], from 0."""

    of: Tensor
    number: int


class ValueCodec(NamedTuple):
    """`decode` gives float32 [k] for data of `nbytes(k, number of groups)` bytes.

    `encode` takes (values float32 [k], groups, draws): with draws, uniform in [0, 1), int8 rounds what lies between two
    levels at random so that its mean is right; without, to the nearer one. Those that take rows decode several payloads
    at once, uint8 [rows, nbytes] with groups of [rows, k], as float32 [rows, k].
    """

    nbytes: Callable[[int, int], int]
    encode: Callable[[Tensor, Groups, Tensor | None], Tensor]  # (values, groups, draws) -> uint8 [nbytes]
    decode: Callable[[Tensor, Groups], Tensor]  # (data, groups) -> float32 [k]
    looks_at_groups: bool = True  # if not, it is given empty ones, which cost nothing
    takes_rows: bool = False
    looks_at_draws: bool = True  # if not, none are made


def sized(bits: int, table: int) -> Callable[[int, int], int]:
    """Make the number of bytes of k values of so many bits, and of a table of bfloat16 for each group."""
    return lambda k, groups: packed_nbytes(k, bits) + 2 * table * groups


def cast(dtype: torch.dtype) -> ValueCodec:
    """Code the values in another precision; what is out of its range becomes the largest that is not."""
    limit = torch.finfo(dtype).max

    def encode(values: Tensor, groups: Groups, draws: Tensor | None) -> Tensor:
        held = values.clamp(-limit, limit) if limit < torch.finfo(torch.float32).max else values
        return held.to(dtype).contiguous().view(torch.uint8)

    def decode(data: Tensor, groups: Groups) -> Tensor:
        is_aligned = data.is_contiguous() and data.storage_offset() % dtype.itemsize == 0
        return (data if is_aligned else data.clone()).view(dtype).float()

    return ValueCodec(
        sized(torch.finfo(dtype).bits, 0), encode, decode, looks_at_groups=False, takes_rows=True, looks_at_draws=False
    )


def int8() -> ValueCodec:
    """Code by 255 evenly spaced levels up to the largest magnitude of the group."""
    levels = 127

    def encode(values: Tensor, groups: Groups, draws: Tensor | None) -> Tensor:
        largest = torch.zeros(groups.number, device=values.device)
        table = _rounded_up(largest.scatter_reduce_(0, groups.of, values.abs(), "amax"))
        scaled = values / table.float()[groups.of].clamp_min(torch.finfo(torch.float32).tiny) * levels
        if draws is not None:
            scaled = (scaled + moved_unwaited(draws, values.device)).floor_()
        codes = scaled.round_().clamp_(-levels, levels).to(torch.int8)
        return torch.cat([table.view(torch.uint8), codes.view(torch.uint8)])

    def decode(data: Tensor, groups: Groups) -> Tensor:
        table, codes = data.split([2 * groups.number, data.shape[-1] - 2 * groups.number], -1)
        return codes.view(torch.int8).float() * (_levels(table).gather(-1, groups.of) / levels)

    return ValueCodec(sized(8, 1), encode, decode, takes_rows=True)


def binned(bits: int) -> ValueCodec:
    """Code a sign and 2^(bits - 1) bins of magnitudes; each value becomes the mean magnitude of its bin in the group.

    The bins come from splitting at the mean, and each part at its own mean again: few but close levels where the many
    values near the threshold of selection lie. With one bit this is STC (Sattler et al. 2019); SparseLoCo (2025) has
    two bits and a table of bin means.
    """
    bins = 2 ** (bits - 1)

    def encode(values: Tensor, groups: Groups, draws: Tensor | None) -> Tensor:
        magnitudes = values.abs()
        part = groups.of
        parts = groups.number
        for _ in range(bits - 1):
            part = 2 * part + (magnitudes > _means(magnitudes, part, parts)[part])
            parts *= 2
        table = _table(_means(magnitudes, part, parts))
        codes = (part % bins) | ((values < 0).to(torch.int64) * bins)
        return torch.cat([table.view(torch.uint8), pack(codes, bits)])

    def decode(data: Tensor, groups: Groups) -> Tensor:
        nbytes = 2 * bins * groups.number
        table, coded = data.split([nbytes, data.shape[-1] - nbytes], -1)
        codes = unpack(coded, bits, groups.of.shape[-1])
        magnitudes = _levels(table).gather(-1, groups.of * bins + codes % bins)
        return torch.where(codes >= bins, -magnitudes, magnitudes)

    return ValueCodec(sized(bits, bins), encode, decode, takes_rows=True, looks_at_draws=False)


def _means(values: Tensor, part: Tensor, parts: int) -> Tensor:
    """Take the mean of each part, 0 if it is empty; summed in float64, so that no sum of float32 overflows."""
    sums = torch.zeros(2, parts, dtype=torch.float64, device=values.device)
    sums[0].index_add_(0, part, values.double())
    sums[1].index_add_(0, part, torch.ones_like(values, dtype=torch.float64))  # bincount would wait for a GPU
    return (sums[0] / sums[1].clamp_min_(1)).float()


def _table(levels: Tensor) -> Tensor:
    return levels.clamp_max(torch.finfo(torch.bfloat16).max).to(torch.bfloat16)


def _rounded_up(levels: Tensor) -> Tensor:
    """Round up to bfloat16, so that the largest of a group has a level beyond it."""
    nearest = _table(levels)
    above = (nearest.view(torch.int16) + 1).view(torch.bfloat16)
    return torch.where((nearest.float() < levels) & above.isfinite(), above, nearest)


def _levels(data: Tensor) -> Tensor:
    """Read the levels of all groups, float32, one group after another, from the bytes of a table."""
    return data.clone().view(torch.bfloat16).float()


VALUE_CODECS: dict[str, ValueCodec] = {
    "fp32": cast(torch.float32),
    "fp16": cast(torch.float16),
    "bf16": cast(torch.bfloat16),
    "int8": int8(),
    "4bit": binned(4),
    "2bit": binned(2),
    "sign": binned(1),
}
