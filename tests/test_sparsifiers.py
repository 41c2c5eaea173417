"""The laws of every sparsifier, in every scope."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from flare_dist.compression import sparsifiers
from flare_dist.compression.compressor import Draws
from flare_dist.compression.segments import SCOPES, Segment, count_kept
from flare_dist.compression.sparsifiers import SPARSIFIERS, NotFiniteError, randk, threshold_k, topk
from flare_dist.compression.unwaited import largest_unwaited
from flare_dist.layout import ParameterLayout
from tests.helpers.plans import chosen

LAYOUT = ParameterLayout.of(
    (name, torch.empty(shape)) for name, shape in {"a": (7, 11), "one": (), "none": (0,), "b": (40,), "c": (2,)}.items()
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def one_generator() -> Draws:
    """Draw for all segments from one generator."""
    rng = seeded()
    return lambda segment: rng


def vector(kind: str, n: int) -> Tensor:
    return {
        "normal": torch.randn(n, generator=seeded()),
        "ties": torch.randint(-2, 3, (n,), generator=seeded()).float(),
        "zeros": torch.zeros(n),
        "equal": torch.full((n,), -0.3),
        "tiny": torch.randn(n, generator=seeded()) * 1e-42,  # subnormal
    }[kind]


KINDS = ["normal", "ties", "zeros", "equal", "tiny"]


def slow_topk(x: Tensor, k: int) -> list[int]:
    return sorted(sorted(range(len(x)), key=lambda i: (-abs(x[i].item()), i))[:k])


@pytest.mark.parametrize("name", SPARSIFIERS)
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("density", [1e-5, 0.07, 0.5, 1.0])
@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_indices_are_sorted_distinct_and_no_more_than_k(
    name: str, scope: str, kind: str, density: float, threshold: float
) -> None:
    update = vector(kind, LAYOUT.total)
    before = update.clone()
    segments = SCOPES[scope](LAYOUT, density, count_kept, block=16)
    indices = chosen(update, segments, name, one_generator(), threshold)
    assert indices.dtype == torch.int64
    assert (indices.diff() > 0).all()
    assert torch.equal(update, before)
    for offset, numel, k, blocks in segments:
        for start in range(offset, offset + blocks * numel, numel):
            kept = int(((indices >= start) & (indices < start + numel)).sum())
            assert kept <= k if name == "threshold" else kept == k
    if name == "threshold":
        assert (update[indices].abs() >= threshold).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 2, 17, 300])
def test_topk_equals_the_slow_reference(kind: str, n: int) -> None:
    x = vector(kind, n)
    for k in {1, (n + 1) // 2, n - 1, n} - {0}:
        assert topk(x, k, seeded()).tolist() == slow_topk(x, k)
        assert largest_unwaited(x.abs(), k).tolist() == slow_topk(x, k)


@pytest.mark.parametrize(
    "kind", [*KINDS, "sorted", "one huge", "heavy tail", "at the end", "in the sample", "beside it", "ties in it"]
)
@pytest.mark.parametrize("density", [1e-5, 1e-3, 1e-2, 0.02, 0.05, 0.2, 1.0])
@pytest.mark.parametrize("chunk", [1000, 2**20])
def test_long_vectors_are_selected_exactly(
    kind: str, density: float, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the bound that a sample gives is too high, too low, or the value of many; in chunks and at once."""
    monkeypatch.setattr(sparsifiers, "_CHUNK", chunk)
    monkeypatch.setattr(sparsifiers, "_PARTITIONED", chunk)
    n = 2**17 + 13
    if kind == "sorted":
        x = torch.arange(n).float()
    elif kind == "one huge":
        x = torch.ones(n).index_fill(0, torch.tensor([n - 2]), 1e30)
    elif kind == "heavy tail":
        x = 1 / torch.rand(n, generator=seeded()).sub(0.5)
    elif kind == "at the end":
        x = torch.rand(n, generator=seeded())
        x[-13:] += 10
    elif kind == "ties in it":  # a value that many of the sample have and few of the others
        x = torch.rand(n, generator=seeded())
        x[: n // 129 * 129].view(-1, 129)[:, :8] = 5
    elif kind in ("in the sample", "beside it"):
        x = torch.randn(n, generator=seeded())
        lines = x[: n // 129 * 129].view(-1, 129)  # a sample is the first eight of each line
        (lines[:, :8] if kind == "in the sample" else lines[:, 8:]).mul_(100)
    else:
        x = vector(kind, n)
    k = count_kept(n, density)
    expected = x.abs().sort(descending=True, stable=True).indices[:k].sort().values
    assert torch.equal(topk(x, k, seeded()), expected)
    assert torch.equal(largest_unwaited(x.abs(), k), expected)


@pytest.mark.parametrize(
    "place",
    [0, 1000, -1, slice(None), slice(None, None, 2), slice(None, None, 30), slice(-50, None)],
    ids=["first", "middle", "rest", "all", "half", "some", "end"],
)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("n", [100, 2**17 + 13])
def test_what_is_not_finite_is_refused(n: int, value: float, place: int | slice) -> None:
    x = torch.randn(n, generator=seeded())
    x[place if isinstance(place, slice) else place % n] = value
    with pytest.raises(NotFiniteError):
        topk(x, 5, seeded())
    with pytest.raises(NotFiniteError):
        chosen(x, [Segment(0, 50, 2, n // 50), Segment(n // 50 * 50, n % 50, n % 50 // 2)], "topk", one_generator())
    topk(torch.full((n,), 3e38), 5, seeded())  # the sum is not, the values are


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("n", [100, 2**16])
def test_any_precision(n: int, dtype: torch.dtype) -> None:
    x = torch.randn(n, generator=seeded()).to(dtype)
    for k in (0, 1, n // 20, n):
        assert topk(x, k, seeded()).tolist() == slow_topk(x, k)


def test_ties_go_to_the_lowest_index() -> None:
    assert topk(torch.tensor([1.0, -2.0, 2.0, 0.0, -2.0, 1.0]), 4, seeded()).tolist() == [0, 1, 2, 4]
    assert topk(torch.zeros(9), 4, seeded()).tolist() == [0, 1, 2, 3]
    assert topk(torch.tensor([-0.0, 0.0, -0.0]), 2, seeded()).tolist() == [0, 1]


def test_scopes_share_out_differently() -> None:
    update = torch.arange(120.0)
    shared = chosen(update, SCOPES["tensor"](LAYOUT, 0.05, count_kept), "topk", one_generator())
    assert shared.tolist() == [73, 74, 75, 76, 77, 116, 117, 119]
    assert chosen(update, SCOPES["global"](LAYOUT, 0.05, count_kept), "topk", one_generator()).tolist() == list(
        range(114, 120)
    )


def test_randk_follows_its_generator_alone() -> None:
    first = randk(torch.zeros(1000), 50, seeded())
    assert torch.equal(first, randk(torch.randn(1000, generator=seeded()), 50, seeded()))
    assert not torch.equal(first, randk(torch.zeros(1000), 50, seeded(1)))
    rng = seeded()
    assert torch.equal(first, randk(torch.zeros(1000), 50, rng))
    assert not torch.equal(first, randk(torch.zeros(1000), 50, rng))


def test_randk_is_uniform() -> None:
    rng, counts = seeded(), torch.zeros(10)
    for _ in range(3000):
        counts[randk(torch.zeros(10), 3, rng)] += 1
    torch.testing.assert_close(counts / 3000, torch.full((10,), 0.3), atol=0.04, rtol=0)


def test_threshold_keeps_what_reaches_it_up_to_its_cap() -> None:
    x = torch.tensor([0.5, -2.0, 0.49, 1.0, -0.5, 2.0])
    assert threshold_k(x, 6, seeded(), 0.5).tolist() == [0, 1, 3, 4, 5]
    assert threshold_k(x, 3, seeded(), 0.5).tolist() == [1, 3, 5]
    assert threshold_k(x, 4, seeded(), 0.5).tolist() == [0, 1, 3, 5]
    assert threshold_k(x, 6, seeded(), 3.0).tolist() == []


@pytest.mark.parametrize("kind", KINDS)
def test_threshold_zero_is_topk(kind: str) -> None:
    x = vector(kind, 60)
    for k in (1, 20, 60):
        assert torch.equal(threshold_k(x, k, seeded(), 0.0), topk(x, k, seeded()))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", SPARSIFIERS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_device_changes_nothing(name: str, kind: str) -> None:
    x = vector(kind, LAYOUT.total)
    segments = SCOPES["tensor"](LAYOUT, 0.3, count_kept)
    there = chosen(x.cuda(), segments, name, one_generator(), 0.5)
    assert there.is_cuda
    assert torch.equal(there.cpu(), chosen(x, segments, name, one_generator(), 0.5))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 3, 16])
def test_rows_at_once_are_rows_one_after_another(kind: str, k: int) -> None:
    rows = vector(kind, 96).view(6, 16)
    expected = [place * 16 + index for place, row in enumerate(rows) for index in slow_topk(row, k)]
    assert largest_unwaited(rows.abs(), k).tolist() == expected
