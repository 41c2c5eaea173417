"""Masks: which weights are prunable, how many each layer keeps, and how far masks lie apart."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from flare_dist.comm.host import Host
from flare_dist.layout import Entry, ParameterLayout, parameter_layout
from flare_dist.models.registry import build
from flare_dist.sparse_training.config import SparseTrainingConfig
from flare_dist.sparse_training.layers import Layers
from flare_dist.sparse_training.masks import (
    apportion,
    bernoulli_mask,
    drop_outside,
    everything_but,
    largest_mask,
    layer_counts,
    mask_mismatch,
    none_empty,
    random_mask,
    random_places,
)
from flare_dist.sparse_training.prunable import prunable_entries
from flare_dist.tasks.builtin import CLASSIFICATION

CPU = torch.device("cpu")
LAYOUT = ParameterLayout.of([(name, torch.empty(n)) for name, n in (("a", 40), ("bias", 5), ("b", 400))])
ENTRIES = (LAYOUT.entries[0], LAYOUT.entries[2])
LAYERS = Layers.of(ENTRIES, Host())


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_prunable_weights_of_resnet18_are_those_of_the_paper() -> None:
    model = build("resnet18", "group", (3, 32, 32), 10, 0, CLASSIFICATION)
    entries = prunable_entries(model, parameter_layout(model), SparseTrainingConfig(method="spdst"))
    assert (len(entries), sum(entry.numel for entry in entries)) == (20, 11_159_232)
    without = SparseTrainingConfig(method="spdst", exclude=("*downsample*",))  # as for Tiny-ImageNet
    assert len(prunable_entries(model, parameter_layout(model), without)) == 17


def test_the_prunable_weights_of_mnist_net_are_its_second_convolution_and_its_first_linear_layer() -> None:
    model = build("mnist_net", "group", (1, 28, 28), 10, 0, CLASSIFICATION)
    config = SparseTrainingConfig(method="spdst", layers="all", exclude_ends=True)
    entries = prunable_entries(model, parameter_layout(model), config)
    assert [entry.shape for entry in entries] == [(20, 10, 5, 5), (50, 5120)]
    everywhere = SparseTrainingConfig(method="spdst", layers="all")
    assert len(prunable_entries(model, parameter_layout(model), everywhere)) == 4
    convolutions = SparseTrainingConfig(method="spdst", exclude_ends=True)
    assert [entry.shape for entry in prunable_entries(model, parameter_layout(model), convolutions)] == [(20, 10, 5, 5)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "sparse_training.layers: the model has no prunable convolutions"),
        ({"layers": "all", "exclude": ("nothing.*",)}, "sparse_training.exclude: 'nothing.*' matches no prunable"),
        ({"layers": "all", "density": 0.001}, "0.001 leaves none of the 30 weights of 3.weight"),
        (
            {"layers": "all", "density": 0.02, "method": "spdst", "hetero": ((1.0, 0.05),)},
            "0.001 leaves none of the 30 weights of 3.weight",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_pruned_is_said_in_one_line(settings: dict, message: str) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(100, 10), nn.ReLU(), nn.Linear(10, 3))
    with pytest.raises(ValueError, match=message) as error:
        prunable_entries(model, parameter_layout(model), SparseTrainingConfig(**({"method": "pdst"} | settings)))
    assert "\n" not in str(error.value)


@given(st.data(), st.lists(st.tuples(st.floats(0, 10), st.integers(0, 50)), min_size=1, max_size=8))
def test_apportion_gives_exactly_what_there_is_and_never_more_than_fits(
    data: st.DataObject, layers: list[tuple[float, int]]
) -> None:
    shares, limits = [share for share, _ in layers], [limit for _, limit in layers]
    total = data.draw(st.integers(0, sum(limits) + 3))
    counts = apportion(shares, total, limits)
    assert sum(counts) == min(total, sum(limits))
    assert all(0 <= count <= limit for count, limit in zip(counts, limits))


def test_apportion_is_proportional_and_shares_what_a_limit_cuts_off() -> None:
    assert apportion([1, 2, 3], 60, [100, 100, 100]) == [10, 20, 30]
    assert apportion([1, 2, 3], 60, [100, 100, 15]) == [15, 30, 15]
    assert apportion([1, 1, 1], 4, [9, 9, 9]) == [2, 1, 1]
    assert apportion([0, 0], 3, [2, 2]) == [2, 1]
    assert none_empty([0, 5, 1], [3, 9, 9]) == [1, 4, 1]
    assert none_empty([0, 1], [3, 3]) == [0, 1]


def test_random_masks_have_as_many_entries_as_asked_for_and_depend_on_the_draws() -> None:
    mask = random_mask(LAYERS, [7, 100], LAYOUT.total, draws(), CPU)
    assert layer_counts(mask, LAYERS) == [7, 100]
    assert mask[40:45].all()
    assert torch.equal(mask, random_mask(LAYERS, [7, 100], LAYOUT.total, draws(), CPU))
    assert not torch.equal(mask, random_mask(LAYERS, [7, 100], LAYOUT.total, draws(1), CPU))


@given(st.integers(1, 300), st.integers(0, 2**31))
def test_random_places_differ(numel: int, seed: int) -> None:
    for count in {0, 1, numel // 5, numel}:
        places = random_places(numel, count, draws(seed))
        assert len(places.unique()) == count == len(places)
        assert count == 0 or (places.min() >= 0 and places.max() < numel)


def test_random_places_are_uniform() -> None:
    counts = sum(torch.bincount(random_places(50, 5, draws(seed)), minlength=50) for seed in range(2000))
    assert isinstance(counts, Tensor)
    assert (counts - 200).abs().max() < 4.5 * math.sqrt(200 * 0.9)


def test_bernoulli_masks_are_within_four_deviations_of_their_density() -> None:
    layers = Layers.of([Entry("a", (10_000,), 0)], Host())
    (count,) = layer_counts(bernoulli_mask(layers, [0.05], 10_000, draws(), CPU), layers)
    assert abs(count - 500) < 4 * math.sqrt(500 * 0.95)
    with pytest.raises(ValueError, match="1e-09 leaves none of the 10000 weights of a;"):
        bernoulli_mask(layers, [1e-9], 10_000, draws(), CPU)


def test_the_largest_weights_within_a_mask_and_nested_budgets() -> None:
    weights = torch.randn(LAYOUT.total, generator=draws())
    within = random_mask(LAYERS, [20, 200], LAYOUT.total, draws(), CPU)
    masks = [largest_mask(weights, LAYERS, [k, 10 * k], within) for k in (5, 10, 20)]
    for smaller, larger in itertools.pairwise(masks):
        assert (larger | ~smaller).all()  # nested
    assert torch.equal(masks[-1], within)
    kept, left = weights[:40][masks[0][:40]].abs(), weights[:40][(within & ~masks[0])[:40]].abs()
    assert (len(kept), kept.min() > left.max()) == (5, True)


def test_mismatch_is_the_mean_jaccard_distance_over_pairs() -> None:
    masks = [random_mask(LAYERS, [10, 90], LAYOUT.total, draws(seed), CPU) for seed in range(3)]
    inner = [{n for n in range(LAYOUT.total) if mask[n] and not 40 <= n < 45} for mask in masks]
    expected = sum(1 - len(a & b) / len(a | b) for a, b in itertools.combinations(inner, 2)) / 3
    assert mask_mismatch(masks, LAYERS) == pytest.approx(expected, abs=1e-12)
    assert mask_mismatch([masks[0], masks[0]], LAYERS) == 0.0
    assert mask_mismatch(masks[:1], LAYERS) == 0.0


def test_what_lies_outside_a_mask_is_dropped_and_counted() -> None:
    mask = everything_but(LAYERS, LAYOUT.total, CPU)
    vectors = [torch.ones(LAYOUT.total), torch.zeros(LAYOUT.total)]
    vectors[1][0] = 3.0
    assert drop_outside(vectors, mask) == 440 + 1
    assert (int(vectors[0].sum()), int(vectors[1].count_nonzero())) == (5, 0)
