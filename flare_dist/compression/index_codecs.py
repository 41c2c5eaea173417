"""Index codecs: k ascending positions below n as bytes whose number follows from n and k alone.

Each is lossless, a pair of functions on tensors of the payload's device, and does not wait for a GPU. No code needs
fewer than log2 C(n, k) bits on average over all sets: `bound_bits`. `auto` takes the smallest for (n, k), which sender
and receiver compute alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from flare_dist.compression import gpu_trial
from flare_dist.compression.bits import bit_positions, pack, packed_nbytes, set_bits, unpack
from flare_dist.compression.elias_fano import read, sizes, write
from flare_dist.compression.gpu_bits import read_on_gpu, write_on_gpu


class IndexCodec(NamedTuple):
    """`encode` takes ascending integers [k] and n; `decode` is its inverse for data of `nbytes(n, k)`.

    Those that take rows decode several payloads at once, uint8 [rows, nbytes], as int64 or int32 [rows, k].
    """

    nbytes: Callable[[int, int], int]
    encode: Callable[[Tensor, int], Tensor]  # (indices, n) -> uint8 [nbytes]
    decode: Callable[[Tensor, int, int], Tensor]  # (data, n, k) -> int64 [k]
    takes_rows: bool = False


def int32() -> IndexCodec:
    """Code an index in four bytes."""
    return IndexCodec(
        lambda n, k: 4 * k,
        lambda indices, n: indices.to(torch.int32).view(torch.uint8),
        lambda data, n, k: data.clone().view(torch.int32).to(torch.int64),  # a clone is aligned, a slice may not be
        takes_rows=True,
    )


def blockwise(block: int) -> IndexCodec:
    """Code the position within a block in ceil(log2 block) bits, behind how many of the indices lie in each block.

    With blocks of 4096 these are the 12 bits of SparseLoCo (2025), whose selection keeps as many in each block and
    so needs no counts.
    """
    bits = (block - 1).bit_length()
    width = block.bit_length()

    def encode(indices: Tensor, n: int) -> Tensor:
        edges = torch.arange(math.ceil(n / block) + 1, device=indices.device, dtype=indices.dtype) * block
        counts = torch.searchsorted(indices, edges).diff()
        return torch.cat([pack(counts, width), pack(indices % block, bits)])

    def decode(data: Tensor, n: int, k: int) -> Tensor:
        blocks = math.ceil(n / block)
        counts, offsets = data.split([packed_nbytes(blocks, width), packed_nbytes(k, bits)], -1)
        ends = unpack(counts, width, blocks).cumsum(-1)
        numbers = torch.arange(k, device=data.device).expand(*data.shape[:-1], k).contiguous()
        places = torch.searchsorted(ends, numbers, right=True)
        return places * block + unpack(offsets, bits, k)

    return IndexCodec(
        lambda n, k: packed_nbytes(math.ceil(n / block), width) + packed_nbytes(k, bits),
        encode,
        decode,
        takes_rows=True,
    )


def elias_fano() -> IndexCodec:
    """Code as Elias (1974) and Fano (1971), see elias_fano.py: of many indices at most 0.6 bit each above the bound."""

    def encode(indices: Tensor, n: int) -> Tensor:
        on_gpu = indices.is_cuda and gpu_trial.works(indices.device)
        return write_on_gpu(indices, n) if on_gpu else write(indices, n)

    def decode(data: Tensor, n: int, k: int) -> Tensor:
        on_gpu = data.is_cuda and gpu_trial.works(data.device)
        return read_on_gpu(data, n, k) if on_gpu else read(data, n, k)

    return IndexCodec(lambda n, k: sum(sizes(n, k)[1:]), encode, decode, takes_rows=True)


def bitmap() -> IndexCodec:
    """Code each of the n positions in one bit."""
    return IndexCodec(
        lambda n, k: -(-n // 8),
        lambda indices, n: set_bits(indices.to(torch.int64), n),
        lambda data, n, k: bit_positions(data, k),
        takes_rows=True,
    )


INDEX_CODECS: dict[str, IndexCodec] = {
    "elias_fano": elias_fano(),
    "bitmap": bitmap(),
    "packed": blockwise(2**12),
    "block16": blockwise(2**16),
    "int32": int32(),
}


@lru_cache(maxsize=256)
def candidates(name: str, block: int) -> tuple[IndexCodec, ...]:
    """Return the codecs from which the smallest is taken: that of this name, or all of them for `auto`."""
    codecs = INDEX_CODECS if block == 4096 else INDEX_CODECS | {"packed": blockwise(block)}
    return tuple(codecs.values()) if name == "auto" else (codecs[name],)


@lru_cache(maxsize=256)
def smallest(codecs: tuple[IndexCodec, ...], n: int, k: int) -> IndexCodec:
    """Return the codec that takes the fewest bytes for k of n."""
    return min(codecs, key=lambda codec: codec.nbytes(n, k))


ALL = candidates("auto", 4096)


def positions_nbytes(n: int, k: int) -> int:
    """Count the bytes of k positions below n by the cheapest codec.

    >>> positions_nbytes(1_000_000, 1000), 4 * 1000  # one in a thousand; int32 takes the latter
    (1495, 4000)
    """
    return smallest(ALL, n, k).nbytes(n, k) if k else 0


def check_indices(indices: Tensor, n: int) -> None:
    """Raise ValueError unless `indices` are ascending, all different and from 0 to n - 1; waits for a GPU."""
    if indices.numel() and not bool((indices[0] >= 0) & (indices[-1] < n) & (indices.diff() > 0).all()):
        raise ValueError(f"the indices of a payload are not {indices.numel()} ascending numbers below {n}")


def bound_bits(n: int, k: int) -> float:
    """Return log2 C(n, k), the bits that k of n positions need if all sets are equally likely.

    >>> round(bound_bits(1_000_000, 1000) / 8)
    1425
    """
    return (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2)
