"""Values come back as promised: exactly, to the precision of a type, or as one of a few levels."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from flare_dist.compression.value_codecs import VALUE_CODECS, Groups

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
QUANTISED = [name for name, codec in VALUE_CODECS.items() if codec.looks_at_groups]


@st.composite
def grouped(draw: st.DrawFn) -> tuple[Tensor, Groups]:
    """Values of any size in up to four groups, some of them empty."""
    values = draw(st.lists(FLOATS, max_size=30))
    number = draw(st.integers(1, 4))
    of = sorted(draw(st.lists(st.integers(0, number - 1), min_size=len(values), max_size=len(values))))
    return torch.tensor(values), Groups(torch.tensor(of, dtype=torch.int64), number)


def there_and_back(name: str, values: Tensor, groups: Groups, draws: Tensor | None = None) -> Tensor:
    codec = VALUE_CODECS[name]
    data = codec.encode(values, groups, draws)
    assert (data.dtype, data.numel()) == (torch.uint8, codec.nbytes(len(values), groups.number))
    decoded = codec.decode(data, groups)
    assert decoded.dtype == torch.float32
    return decoded


@pytest.mark.parametrize("name", VALUE_CODECS)
@given(grouped())
def test_any_finite_values_are_taken_and_what_comes_back_is_finite(name: str, drawn: tuple[Tensor, Groups]) -> None:
    values, groups = drawn
    decoded = there_and_back(name, values, groups)
    assert decoded.isfinite().all()
    assert decoded.shape == values.shape
    for group in range(groups.number):
        if not values[groups.of == group].any():
            assert not decoded[groups.of == group].any()


@given(grouped())
def test_what_is_sent_and_what_is_left_are_the_value(drawn: tuple[Tensor, Groups]) -> None:
    """Exactly, for the lossless and for float16 in its range: the rounding error of a float32 fits into a float32."""
    values, groups = drawn
    assert torch.equal(there_and_back("fp32", values, groups), values)
    in_range = values[(values.abs() <= 65504) & ((values.abs() >= 2.0**-100) | (values == 0))]
    sent = there_and_back("fp16", in_range, Groups(groups.of[: len(in_range)], groups.number))
    assert torch.equal(sent + (in_range - sent), in_range)


def test_out_of_range_is_the_largest() -> None:
    groups = Groups(torch.zeros(2, dtype=torch.int64), 1)
    assert there_and_back("fp16", torch.tensor([1e6, -1e9]), groups).tolist() == [65504, -65504]


@pytest.mark.parametrize(
    ("name", "error"),
    [("fp16", 0.0005), ("bf16", 0.004), ("int8", 0.01), ("4bit", 0.05), ("2bit", 0.13), ("sign", 0.3)],
)
def test_more_bits_lose_less(name: str, error: float) -> None:
    """Of the largest tenth of normal values, in groups that differ by a factor of a million."""
    rng = torch.Generator().manual_seed(0)
    values = torch.randn(40_000, generator=rng)
    values = values[values.abs() > 1.65]
    groups = Groups(torch.arange(len(values)) % 4, 4)
    values *= torch.tensor([1e-4, 1e-2, 1.0, 100.0])[groups.of]
    for group in range(4):
        own = values[groups.of == group]
        lost = there_and_back(name, values, groups)[groups.of == group] - own
        assert lost.norm() < error * own.norm()


def test_signs_are_kept_and_magnitudes_are_means() -> None:
    values = torch.tensor([1.0, -3.0, 10.0, 0.0])
    groups = Groups(torch.tensor([0, 0, 1, 1]), 2)
    assert there_and_back("sign", values, groups).tolist() == [2, -2, 5, 5]
    assert there_and_back("2bit", values, groups).tolist() == values.tolist()


def test_rounding_at_random_has_the_right_mean() -> None:
    values = torch.tensor([127.0, 0.25, -0.75, 3.5]).repeat(20_000)
    groups = Groups(torch.zeros(len(values), dtype=torch.int64), 1)
    draws = torch.rand(len(values), generator=torch.Generator().manual_seed(0))
    decoded = there_and_back("int8", values, groups, draws)
    nearest = there_and_back("int8", values, groups)
    assert set(nearest.tolist()) == {127, 0, -1, 4}
    assert (decoded - values).abs().max() < 1
    torch.testing.assert_close(decoded.view(-1, 4).mean(0), values[:4], rtol=0, atol=0.02)


def test_the_largest_has_a_level_and_nothing_overflows() -> None:
    """1.0039 lies between two bfloat16; 1e37 times 127 would overflow."""
    for values in (torch.tensor([1.0039]), torch.tensor([3e38, 1e37])):
        decoded = there_and_back("int8", values, Groups(torch.zeros(len(values), dtype=torch.int64), 1))
        torch.testing.assert_close(decoded, values, rtol=0.01, atol=float(values.max()) / 100)
    draws = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    groups = Groups(torch.zeros(20_000, dtype=torch.int64), 1)
    assert there_and_back("int8", torch.full((20_000,), 1.0039), groups, draws).mean() == pytest.approx(
        1.0039, abs=1e-4
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", VALUE_CODECS)
def test_a_device_decodes_what_another_encoded(name: str) -> None:
    values, codec = torch.randn(1000), VALUE_CODECS[name]
    groups, on_device = (Groups((torch.arange(1000) // 250).to(device), 4) for device in ("cpu", "cuda"))
    data = codec.encode(values, groups, None)
    assert torch.equal(codec.decode(data.cuda(), on_device).cpu(), codec.decode(data, groups))
