"""A client's mask while it trains: what a mask update prunes, how much grows where, and what stays exact."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from flare_dist.sparse_training.config import SparseTrainingConfig
from flare_dist.sparse_training.local_mask import LocalMask
from flare_dist.sparse_training.masks import layer_counts
from flare_dist.sparse_training.schedule import update_steps
from tests.helpers.masks import ENTRIES, LAYERS, TOTAL, draws, local_mask, update


def test_masks_move_at_the_end_of_every_epoch_but_the_last_or_in_the_middle_of_a_single_one() -> None:
    assert list(update_steps(12, 4)) == [4, 8]
    assert list(update_steps(19, 19)) == [9]
    assert list(update_steps(5, 19)) == [2]  # fewer steps than an epoch has
    assert list(update_steps(1, 1)) == []
    assert list(update_steps(2, 1)) == [1]


@pytest.mark.parametrize("counts", ["exact", "faithful"])
@pytest.mark.parametrize("step", [0, 3, 5, 9])
def test_an_update_prunes_the_smallest_and_grows_zeros_to_the_same_total(counts: str, step: int) -> None:
    used, weights = local_mask(counts=counts)
    before, old = used.mask.clone(), weights.clone()
    growing = update(used, weights, step)
    rate = 0.25 * (1 - step / 10)
    for entry, active, grown in zip(ENTRIES, (20, 100, 100), growing):
        own = slice(entry.offset, entry.end)
        survivors = old[own][weights[own] != 0]
        removed = old[own][before[own] & (weights[own] == 0)]
        assert len(removed) == int(rate * active)
        assert not len(removed) or removed.abs().max() < survivors.abs().min()
        assert int(used.mask[own].sum()) == active - len(removed) + grown
    assert not weights[used.mask & ~before].any()  # what has grown begins at zero
    assert not weights[~used.mask].any()
    assert torch.equal(used.factor, used.mask.float())
    rounded = 0 if counts == "exact" else len(ENTRIES)  # faithful rounds each layer up
    assert 220 <= sum(layer_counts(used.mask, LAYERS)) <= 220 + rounded
    assert all(count <= entry.numel for count, entry in zip(layer_counts(used.mask, LAYERS), ENTRIES))


def test_layers_grow_in_proportion_to_their_mean_magnitude() -> None:
    used, weights = local_mask(actives=(20, 100, 100), prune_rate=0.5)
    weights[665:] *= 3.0
    means = [float(weights[e.offset : e.end].abs().sum()) / n for e, n in zip(ENTRIES, (20, 100, 100))]
    growing = used.prune(weights, 0)
    missing = 10 + 50 + 50
    for grown, mean in zip(growing, means):
        assert grown == pytest.approx(missing * mean / sum(means), abs=1)
    assert sum(growing) == missing


def test_growth_stops_short_of_a_full_layer_and_the_rest_goes_elsewhere() -> None:
    used, weights = local_mask(actives=(50, 100, 100), prune_rate=0.5)
    weights[:60] *= 1000.0  # all growth wants to go into the first layer
    growing = used.prune(weights, 0)
    # nearly dense and important: pruned by no more than its share of zeros
    removed = int(10 / 60 * 50)
    assert growing[0] == int(0.99 * (10 + removed))
    assert sum(growing) == removed + 50 + 50


def test_growth_by_gradient_takes_the_largest_of_the_free_places() -> None:
    used, weights = local_mask(growth="gradient")
    gradient = torch.randn(TOTAL, generator=draws(5))
    seen = used.watch(5, None)
    assert seen is not None
    seen(gradient.clone(), weights)
    assert used.watch(10, None) is None  # only where the mask is due to move
    before = used.mask.clone()
    growing = update(used, weights, 5)
    pruned = before.clone()
    pruned[before & (weights == 0)] = False
    for entry, grown in zip(ENTRIES, growing):
        own = slice(entry.offset, entry.end)
        free = gradient[own].abs() * ~pruned[own]
        assert set((used.mask[own] & ~pruned[own]).nonzero().flatten().tolist()) == set(
            free.topk(grown).indices.tolist()
        )


def test_a_watched_penalty_still_counts_and_the_gradient_is_that_of_the_loss_alone() -> None:
    used, weights = local_mask(growth="gradient")

    def penalty(gradient: Tensor, parameters: Tensor) -> None:
        gradient.add_(1.0)

    gradient = torch.zeros(TOTAL)
    watched = used.watch(5, penalty)
    assert watched is not None
    watched(gradient, weights)
    assert gradient.eq(1).all()
    assert used._gradient is not None
    assert not used._gradient.any()
    assert used.watch(10, penalty) is penalty


def test_where_the_gradient_overflowed_growth_is_random_and_the_total_is_kept() -> None:
    used, weights = local_mask(growth="gradient")
    seen = used.watch(5, None)
    assert seen is not None
    seen(torch.full((TOTAL,), math.nan), weights)
    update(used, weights, 5)
    assert sum(layer_counts(used.mask, LAYERS)) == 220


def test_a_model_that_is_nearly_dense_stays_as_dense() -> None:
    used, weights = local_mask(actives=(60, 599, 1000))
    update(used, weights, 5)
    assert sum(layer_counts(used.mask, LAYERS)) == 1659


def test_a_client_that_has_diverged_keeps_its_mask() -> None:
    used, weights = local_mask()
    before = used.mask.clone()
    weights[0] = math.nan
    used.grow(used.prune(weights, 3))
    assert torch.equal(used.mask, before)


def test_a_frozen_mask_is_not_copied() -> None:
    mask = torch.ones(TOTAL, dtype=torch.bool)
    used = LocalMask(SparseTrainingConfig(), LAYERS, mask, 0, {}, draws(), torch.empty(TOTAL))
    assert used.mask is mask


def test_a_layer_of_feddst_grows_what_it_has_lost_where_the_gradient_is_largest() -> None:
    used, weights = local_mask()
    used.config = SparseTrainingConfig(method="feddst")
    used.growth = used.config.resolved_growth
    weights[: ENTRIES[0].end] *= 100.0  # under FLASH's rule the first layer would grow at the others' cost
    before, old = used.mask.clone(), weights.clone()
    gradient = torch.randn(TOTAL, generator=draws(5))
    watched = used.watch(5, None)
    assert watched is not None
    watched(gradient.clone(), weights)
    growing = used.prune(weights, 5)
    weights.mul_(used.factor)
    pruned = used.mask.clone()
    used.grow(growing)
    assert growing == [int(0.125 * count) for count in (20, 100, 100)]
    for entry, count in zip(ENTRIES, growing):
        own = slice(entry.offset, entry.end)
        removed, grown = before[own] & ~pruned[own], used.mask[own] & ~pruned[own]
        assert int(removed.sum()) == int(grown.sum()) == count
        assert old[own][removed].abs().max() <= old[own][pruned[own]].abs().min()
        assert gradient[own][grown].abs().min() >= gradient[own][~used.mask[own]].abs().max()
