"""FLASH's formulas: densities from sensitivities, projections, budgets; and its configuration."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch

from flare_dist.comm.host import Host
from flare_dist.layout import Entry
from flare_dist.sparse_training import flash
from flare_dist.sparse_training.config import SparseTrainingConfig
from flare_dist.sparse_training.layers import Layers
from flare_dist.sparse_training.masks import budget, layer_counts, random_mask
from flare_dist.sparse_training.methods import METHODS

SIZES = (100, 1000, 3000)
ENTRIES = tuple(Entry(name, (n,), sum(SIZES[:place])) for place, (name, n) in enumerate(zip("abc", SIZES)))
LAYERS = Layers.of(ENTRIES, Host())
TOTAL, CPU = sum(SIZES), torch.device("cpu")


def config(**settings: Any) -> SparseTrainingConfig:
    defaults: dict[str, Any] = {"method": "jmwst", "density": 0.1}
    return SparseTrainingConfig(**(defaults | settings))


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_densities_are_the_mean_sensitivities_scaled_to_the_budget() -> None:
    sensitivities = [[0.4, 0.1, 0.08], [0.6, 0.1, 0.12]]
    means = [0.5, 0.1, 0.1]
    scale = 0.1 * 4100 / sum(m * n for m, n in zip(means, SIZES))
    faithful = flash.consensus_densities(config(counts="faithful"), LAYERS, sensitivities)
    assert faithful == pytest.approx([m * scale for m in means])
    exact = flash.consensus_densities(config(), LAYERS, sensitivities)
    assert exact == pytest.approx(faithful, abs=1 / 100)
    assert sum(density * n for density, n in zip(exact, SIZES)) == pytest.approx(410)


def test_no_density_is_above_one_and_what_is_clipped_goes_to_the_other_layers() -> None:
    sensitivities = [[1.0, 0.2, 0.1]]
    settings = {"density": 0.4}
    faithful = flash.consensus_densities(config(counts="faithful", **settings), LAYERS, sensitivities)
    assert max(faithful) == 1.0
    assert sum(density * n for density, n in zip(faithful, SIZES)) < 0.4 * TOTAL  # nothing is redistributed
    exact = flash.consensus_densities(config(**settings), LAYERS, sensitivities)
    assert exact[0] == 1.0
    assert exact[1] / exact[2] == pytest.approx(2, rel=1e-2)
    assert sum(density * n for density, n in zip(exact, SIZES)) == pytest.approx(0.4 * TOTAL)


def test_drawn_masks_have_the_budget_exactly_and_no_layer_is_empty() -> None:
    mask = flash.drawn_mask(config(), LAYERS, [0.0, 0.1, 0.1], TOTAL, draws(), CPU)
    counts = layer_counts(mask, LAYERS)
    assert (sum(counts), counts[0]) == (410, 1)
    even = flash.drawn_mask(config(), LAYERS, [0.1] * 3, TOTAL, draws(), CPU)
    assert layer_counts(even, LAYERS) == [10, 100, 300]
    bernoulli = flash.drawn_mask(config(counts="faithful"), LAYERS, [0.1] * 3, TOTAL, draws(), CPU)
    assert abs(sum(layer_counts(bernoulli, LAYERS)) - 410) < 4 * math.sqrt(410 * 0.9)


@pytest.mark.parametrize("shares", [[50, 150, 600], [10, 20, 30], [0, 0, 800]])
def test_the_server_keeps_the_largest_of_the_aggregate(shares: list[float]) -> None:
    union = random_mask(LAYERS, [50, 150, 600], TOTAL, draws(), CPU)
    weights = torch.randn(TOTAL, generator=draws(1)) * union
    mask = flash.projected_mask(config(), LAYERS, weights, union, shares, 410)
    counts = layer_counts(mask, LAYERS)
    assert sum(counts) == 410
    assert min(counts) >= 1
    assert (union | ~mask).all()
    for entry, count in zip(ENTRIES, counts):
        own = slice(entry.offset, entry.end)
        assert torch.equal(
            weights[own].abs().topk(count).values.sort().values, weights[own][mask[own]].abs().sort().values
        )
    published = flash.projected_mask(config(counts="faithful"), LAYERS, weights, union, shares, 410)
    scale = min(1, 410 / sum(shares))
    limits = [50, 150, 600]
    assert layer_counts(published, LAYERS) == [min(n, max(1, int(s * scale + 1e-9))) for s, n in zip(shares, limits)]


def test_budgets_are_nested_and_the_full_one_is_the_mask_itself() -> None:
    mask = random_mask(LAYERS, [50, 60, 300], TOTAL, draws(), CPU)
    weights = torch.randn(TOTAL, generator=draws(1)) * mask
    sizes = [float(count) for count in layer_counts(mask, LAYERS)]
    assert torch.equal(flash.projected_mask(config(), LAYERS, weights, mask, sizes, 410), mask)
    masks = flash.nested_masks(config(hetero=((0.5, 0.5), (0.5, 0.25))), LAYERS, weights, mask)
    assert sorted(masks) == [0.25, 0.5, 1.0]
    assert layer_counts(masks[0.5], LAYERS) == [25, 30, 150]
    assert (masks[0.5] | ~masks[0.25]).all()
    assert (mask | ~masks[0.5]).all()


def test_budgets_are_nested_where_largest_remainders_alone_are_not() -> None:
    """With more to share out a layer may get less (the Alabama paradox): found by a reviewer."""
    numels, counts = [9, 54, 59, 37, 15, 6, 57, 46], [1, 13, 9, 9, 2, 1, 19, 3]
    entries = (Entry(str(place), (n,), sum(numels[:place])) for place, n in enumerate(numels))
    layers = Layers.of(entries, Host())
    consensus = random_mask(layers, counts, sum(numels), draws(), CPU)
    used = config(density=0.2, hetero=((0.5, 0.7), (0.5, 0.75)))
    masks = flash.nested_masks(used, layers, torch.rand(sum(numels), generator=draws(1)), consensus)
    assert (masks[0.75] | ~masks[0.7]).all()
    assert [sum(layer_counts(masks[factor], layers)) for factor in (0.7, 0.75)] == [40, 42]


def test_shares_of_the_cohort_get_their_budgets_whatever_its_size() -> None:
    used = config(hetero=((0.3, 0.5), (0.3, 0.75), (0.4, 1.0)))
    for size in (10, 7, 1):
        cohort = list(range(100, 100 + size))
        drawn = [flash.budgets_of(used, cohort, round_, 0) for round_ in range(2, 402)]
        assert all(list(factors) == cohort for factors in drawn)
        for factor, share in ((0.5, 0.3), (0.75, 0.3), (1.0, 0.4)):
            counts = [list(factors.values()).count(factor) for factors in drawn]
            assert all(abs(count - share * size) < 1 for count in counts)
            # Where shares are no whole numbers they are right on average.
            assert sum(counts) / 400 == pytest.approx(share * size, abs=0.1)
    assert set(flash.budgets_of(used, cohort, 1, 0).values()) == {1.0}  # all of it in the first round
    rounds = [tuple(flash.budgets_of(used, list(range(10)), r, 0).values()) for r in range(2, 12)]
    assert len(set(rounds)) > 5  # drawn anew
    assert budget(used, ENTRIES, 0.75) == round(0.75 * 410)
    assert budget(config(density=0.07), (Entry("a", (100,), 0),)) == 7  # read as the decimal that was written


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"method": "flash"},
            "sparse_training.method: unknown choice, got 'flash'; "
            "choose from dense, pdst, nst, spdst, pruned, jmwst, feddst, prunefl",
        ),
        ({"density": 0.0}, "sparse_training.density: out of range, got 0.0; choose a number in (0, 1]"),
        ({"density": 1.5}, "sparse_training.density: out of range, got 1.5; choose a number in (0, 1]"),
        ({"r_int": 0}, "sparse_training.r_int: out of range, got 0; choose at least 1"),
        ({"init_frac": 0.0}, "sparse_training.init_frac: out of range, got 0.0; choose a number in (0, 1]"),
        ({"init_epochs": 0}, "sparse_training.init_epochs: out of range, got 0; choose at least 1"),
        ({"prune_rate": 1.0}, "sparse_training.prune_rate: out of range, got 1.0; choose a number in [0, 1)"),
        ({"growth": "x"}, "sparse_training.growth: unknown choice, got 'x'; choose from auto, random, gradient"),
        ({"hetero": ((0.5, 0.5), (0.4, 1.0))}, "sparse_training.hetero: the shares must add up to 1, got 0.9"),
        ({"hetero": ((1.0, 1.5),)}, "must be pairs of a share and a factor in (0, 1], got [[1.0, 1.5]]; write e.g. [["),
        ({"hetero": ((1.0, 0.5),), "method": "nst"}, "sparse_training.hetero: needs spdst or jmwst, got [[1.0, 0.5]]"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        config(**settings)
    assert "\n" not in str(error.value)


def test_budgets_are_averaged_over_those_who_have_a_weight_unless_told_otherwise() -> None:
    assert config().resolved_update_mode == "mean"
    assert config(hetero=((1.0, 0.5),)).resolved_update_mode == "masked_mean"
    assert config(hetero=((1.0, 0.5),), update_mode="mean").resolved_update_mode == "mean"
    assert config(update_mode="masked_mean").resolved_update_mode == "masked_mean"
    assert not SparseTrainingConfig().is_sparse
    assert [name for name, method in METHODS.items() if method.has_stage_one] == ["spdst", "jmwst"]
