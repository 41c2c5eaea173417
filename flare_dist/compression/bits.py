"""Numbers of a few bits in bytes, and sets of positions as bits; vectorised, on the device of what is given.

`pack` puts the whole bytes of all numbers first, plane after plane, and the bits that are left over behind them, eight
numbers in as many bytes as each has bits. Nothing here waits for a GPU.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor


def packed_nbytes(count: int, bits: int) -> int:
    """Count the bytes of `count` packed numbers of `bits` bits."""
    return count * (bits // 8) + -(-count * (bits % 8) // 8)


def pack(numbers: Tensor, bits: int) -> Tensor:
    """Write uint8 [packed_nbytes] with the lowest `bits` bits of integers [count]; 0 <= bits <= 32."""
    count = numbers.numel()
    rest = bits % 8
    planes = [(numbers >> shift).to(torch.uint8) for shift in range(0, bits - rest, 8)]
    if rest:
        high = (numbers >> (bits - rest) if bits > rest else numbers) & ((1 << rest) - 1)
        octets = torch.nn.functional.pad(high.to(torch.int64), (0, -count % 8)).view(-1, 8)
        words = (octets << torch.arange(0, 8 * rest, rest, device=numbers.device)).sum(1)
        planes.append(words.view(torch.uint8).view(-1, 8)[:, :rest].reshape(-1)[: -(-count * rest // 8)])
    return torch.cat(planes) if planes else numbers.new_empty(0, dtype=torch.uint8)


def unpack(data: Tensor, bits: int, count: int) -> Tensor:
    """Read the int64 [..., count] numbers of `bits` bits that `pack` wrote to `data`, uint8 [..., packed_nbytes]."""
    rest = bits % 8
    whole = bits // 8
    planes = [data.narrow(-1, plane * count, count).to(torch.int64) << (8 * plane) for plane in range(whole)]
    if rest:
        groups = -(-count // 8)
        left = data.shape[-1] - whole * count
        packed = torch.nn.functional.pad(data.narrow(-1, whole * count, left), (0, groups * rest - left))
        words = torch.nn.functional.pad(packed.unflatten(-1, (groups, rest)), (0, 8 - rest)).view(torch.int64)
        shifts = torch.arange(0, 8 * rest, rest, device=data.device)
        octets = (words >> shifts) & ((1 << rest) - 1)
        high = octets.flatten(-2).narrow(-1, 0, count)
        planes.append(high << (8 * whole) if whole else high)
    if not planes:
        return torch.zeros(*data.shape[:-1], count, dtype=torch.int64, device=data.device)
    return functools.reduce(torch.Tensor.bitwise_or_, planes)


def set_bits(positions: Tensor, size: int) -> Tensor:
    """Return uint8 [ceil(size / 8)], in which the bits at `positions` (different integers below `size`) are 1."""
    flags = torch.zeros(-(-size // 8) * 8, dtype=torch.uint8, device=positions.device)
    flags[positions] = 1
    if flags.is_cuda:
        return pack_bits_unwaited(flags)
    return torch.from_numpy(np.packbits(flags.numpy(), bitorder="little"))


def pack_bits_unwaited(flags: Tensor) -> Tensor:
    """Pack bits (uint8 [count], 0 or 1) into uint8 [count / 8] on any device; numpy's packbits is for CPUs."""
    shifts = torch.arange(8, dtype=torch.uint8, device=flags.device)
    return (flags.view(-1, 8) << shifts).sum(-1, dtype=torch.uint8)


def unpack_bits(data: Tensor) -> Tensor:
    """Return the bits of uint8 `data` one by one, bool [8 * nbytes]."""
    if data.is_cuda:
        return unpack_bits_unwaited(data)
    return torch.from_numpy(np.unpackbits(data.numpy(), bitorder="little").view(bool))


def unpack_bits_unwaited(data: Tensor) -> Tensor:
    """Unpack bits on any device; numpy's unpackbits, a tenth of its time, is for CPUs and one dimension."""
    shifts = torch.arange(8, dtype=torch.uint8, device=data.device)
    return ((data.unsqueeze(-1) >> shifts) & 1).flatten(-2).bool()


def bit_positions(data: Tensor, count: int) -> Tensor:
    """Return ascending int64 [..., count] positions of the first `count` bits that are 1 in uint8 [..., n] `data`.

    If there are fewer the last ones are filled up with the position behind the end.
    """
    if data.is_cuda or data.dim() > 1:
        return positions_unwaited(unpack_bits_unwaited(data), count)
    flags = np.unpackbits(data.numpy(), bitorder="little").view(bool)
    positions = torch.from_numpy(np.flatnonzero(flags)[:count])
    return torch.nn.functional.pad(positions, (0, count - positions.numel()), value=flags.size)


def positions_unwaited(flags: Tensor, count: int) -> Tensor:
    """Return the positions of true booleans in each row, by operations whose results have known sizes."""
    counted = flags.cumsum(-1, dtype=torch.int32)
    wanted = torch.arange(1, count + 1, dtype=torch.int32, device=flags.device)
    return torch.searchsorted(counted, wanted.expand(*flags.shape[:-1], count).contiguous())
