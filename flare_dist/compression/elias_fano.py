"""The code of Elias (1974) and Fano (1971) of k ascending positions below n, by operations of PyTorch on any device.

The l lowest bits of each are written as they are, the rest in unary: bit high_i + i is 1 for the i-th, high_i its bits
above the l lowest. The ones are the positions and each zero steps to the next 2^l. `gpu_bits` does the same in Triton.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from flare_dist.compression.bits import bit_positions, pack, packed_nbytes, set_bits, unpack


class Sizes(NamedTuple):
    """The parts of the code of k positions below n."""

    low: int  # bits of each that are written as they are
    low_nbytes: int
    high_nbytes: int


def low_bits(n: int, k: int) -> int:
    """Choose the number l of low bits that takes the fewest for k of n, l + (k + n / 2^l) / k each."""
    return min(range(n.bit_length() + 1), key=lambda low: k * (low + 1) + (n >> low))


@lru_cache(maxsize=256)  # of a run's few tensors and densities
def sizes(n: int, k: int) -> Sizes:
    """Size the code of k positions below n."""
    low = low_bits(n, k)
    return Sizes(low, packed_nbytes(k, low), -(-(k + (max(n - 1, 0) >> low)) // 8) if k else 0)


def write(indices: Tensor, n: int) -> Tensor:
    """Code ascending integers [k] below n as uint8."""
    k = indices.numel()
    low, _, high_nbytes = sizes(n, k)
    ones = (indices >> low) + torch.arange(k, device=indices.device)
    return torch.cat([pack(indices, low), set_bits(ones, 8 * high_nbytes)])


def read(data: Tensor, n: int, k: int) -> Tensor:
    """Read the int64 [..., k] positions below n that `write` coded as `data`, uint8 [..., nbytes]."""
    low, low_nbytes, high_nbytes = sizes(n, k)
    lows, highs = data.split([low_nbytes, high_nbytes], -1)
    high = bit_positions(highs, k) - torch.arange(k, device=data.device)
    return (high << low) | unpack(lows, low, k)
