"""Positions come back as they were, in the bytes that were promised, close to the fewest possible."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from flare_dist.compression.bits import (
    bit_positions,
    pack,
    pack_bits_unwaited,
    packed_nbytes,
    positions_unwaited,
    set_bits,
    unpack,
    unpack_bits,
    unpack_bits_unwaited,
)
from flare_dist.compression.elias_fano import low_bits
from flare_dist.compression.index_codecs import (
    ALL,
    INDEX_CODECS,
    bound_bits,
    candidates,
    check_indices,
    smallest,
)
from flare_dist.compression.sparsifiers import topk


@st.composite
def index_sets(draw: st.DrawFn) -> tuple[Tensor, int]:
    """(ascending indices, n), from empty to full, spread out or in a heap."""
    n = draw(st.integers(1, 200_000))
    k = min(n, draw(st.sampled_from([0, 1, 7, 8, 9, n // 1000, n // 10, n // 2, n - 1, n])))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    if draw(st.booleans()):
        return torch.randperm(n, generator=rng)[:k].sort().values, n
    start = draw(st.integers(0, n - k))
    return torch.arange(start, start + k), n


@pytest.mark.parametrize("name", [*INDEX_CODECS, "auto"])
@given(index_sets(), st.sampled_from([torch.int32, torch.int64]))
def test_decoding_is_the_inverse_and_the_size_is_known(
    name: str, drawn: tuple[Tensor, int], dtype: torch.dtype
) -> None:
    indices, n = drawn
    codec = smallest(candidates(name, 4096), n, len(indices))
    data = codec.encode(indices.to(dtype), n)
    assert (data.dtype, data.numel()) == (torch.uint8, codec.nbytes(n, len(indices)))
    decoded = codec.decode(data, n, len(indices))
    assert torch.equal(decoded, indices)
    check_indices(decoded, n)


@pytest.mark.parametrize("name", INDEX_CODECS)
@given(index_sets(), st.data())
def test_broken_bytes_are_refused_or_positions_in_range(
    name: str, drawn: tuple[Tensor, int], data: st.DataObject
) -> None:
    """Without the checksum of an update: whatever the bits say, what passes the check lies in the vector."""
    indices, n = drawn
    codec = INDEX_CODECS[name]
    coded = codec.encode(indices, n)
    if not coded.numel():
        return
    for bit in data.draw(st.lists(st.integers(0, 8 * coded.numel() - 1), min_size=1, max_size=5)):
        coded[bit // 8] ^= 1 << bit % 8
    decoded = codec.decode(coded, n, len(indices))
    assert decoded.shape == indices.shape
    try:
        check_indices(decoded, n)
    except ValueError:
        return
    assert decoded.unique().numel() == len(indices)
    assert not len(indices) or 0 <= int(decoded[0]) <= int(decoded[-1]) < n


@pytest.mark.parametrize("wrong", [[-1, 2], [3, 3], [4, 2], [0, 10]])
def test_what_are_no_ascending_positions(wrong: list[int]) -> None:
    with pytest.raises(ValueError, match="not 2 ascending numbers below 10"):
        check_indices(torch.tensor(wrong), 10)


@pytest.mark.parametrize(
    ("density", "most"), [(0.1, 1.15), (0.05, 1.1), (0.02, 1.1), (1e-2, 1.1), (1e-3, 1.1), (1e-4, 1.1)]
)
def test_the_best_codec_is_near_the_bound(density: float, most: float) -> None:
    n = 2_000_000
    indices = topk(
        torch.randn(n, generator=torch.Generator().manual_seed(0)), math.ceil(n * density), torch.Generator()
    )
    k = len(indices)
    nbytes = smallest(ALL, n, k).encode(indices, n).numel()
    assert nbytes == min(codec.nbytes(n, k) for codec in INDEX_CODECS.values())
    assert bound_bits(n, k) < 8 * nbytes < most * bound_bits(n, k)
    assert 8 * INDEX_CODECS["elias_fano"].nbytes(n, k) < bound_bits(n, k) + 0.6 * k + 16


@given(st.integers(1, 10**9), st.floats(0, 1))
def test_low_bits_are_the_best(n: int, share: float) -> None:
    k = max(1, int(n * share))

    def bits(low: int) -> int:
        return k * (low + 1) + (n >> low)

    assert bits(low_bits(n, k)) == min(map(bits, range(40)))


@given(st.integers(0, 32), st.lists(st.integers(0, 2**32 - 1), max_size=40))
def test_numbers_of_any_width_are_packed_tightly(bits: int, numbers: list[int]) -> None:
    data = pack(torch.tensor(numbers, dtype=torch.int64), bits)
    assert data.numel() == packed_nbytes(len(numbers), bits)
    assert data.numel() < len(numbers) * bits / 8 + 1
    assert unpack(data, bits, len(numbers)).tolist() == [number % 2**bits for number in numbers]


@given(st.integers(1, 100), st.data())
def test_positions_of_bits(size: int, data: st.DataObject) -> None:
    positions = sorted(data.draw(st.sets(st.integers(0, size - 1))))
    flags = set_bits(torch.tensor(positions, dtype=torch.int64), size)
    assert flags.numel() == -(-size // 8)
    assert bit_positions(flags, len(positions)).tolist() == positions
    assert bit_positions(flags, len(positions) + 1).tolist() == [*positions, 8 * flags.numel()]


@given(st.integers(0, 40), st.integers(0, 400), st.integers(0, 2**32))
def test_bits_on_a_cpu_are_those_of_a_gpu(nbytes: int, count: int, seed: int) -> None:
    data = torch.randint(256, (nbytes,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    flags = unpack_bits_unwaited(data)
    assert torch.equal(unpack_bits(data), flags)
    assert torch.equal(pack_bits_unwaited(flags.to(torch.uint8)), data)
    assert torch.equal(set_bits(flags.nonzero().squeeze(1), flags.numel()), data)
    assert torch.equal(bit_positions(data, count), positions_unwaited(flags, count))


def test_the_bound_is_the_logarithm_of_the_number_of_sets() -> None:
    assert bound_bits(40, 7) == pytest.approx(math.log2(math.comb(40, 7)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", INDEX_CODECS)
def test_the_device_changes_no_byte(name: str) -> None:
    n, codec = 100_000, INDEX_CODECS[name]
    indices = torch.randperm(n)[:5000].sort().values
    data = codec.encode(indices.cuda(), n)
    assert torch.equal(data.cpu(), codec.encode(indices, n))
    assert torch.equal(codec.decode(data, n, 5000).cpu(), indices)
