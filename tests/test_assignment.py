"""Which weights each client trains, and how many bytes it receives."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from flare_dist.comm.message import HEADER_NBYTES
from flare_dist.comm.world import World
from flare_dist.rounds.federated import federated_round
from flare_dist.sparse_training.consensus import Masks
from flare_dist.sparse_training.masks import layer_counts
from tests.helpers.masks import BASE, BUDGET, HETERO, PRUNABLE, begin, config, play, spy
from tests.ranks import single


def test_smaller_budgets_train_nested_parts_of_the_consensus(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = spy(monkeypatch)
    used = config(method="spdst", hetero=HETERO)
    fed = begin(World(), used)
    assert isinstance(fed.masks, Masks)
    federated_round(1, fed)
    assert {sum(layer_counts(mask.mask, fed.masks.layers)) for *_, mask in seen} == {BUDGET}
    seen.clear()
    weights = fed.server.parameters.detach().clone()
    report = federated_round(2, fed)
    masks = sorted((mask.mask for *_, mask in seen), key=lambda mask: int(mask.sum()))
    assert [sum(layer_counts(mask, fed.masks.layers)) for mask in masks] == [1331, 1997, BUDGET, BUDGET]
    for smaller, larger in itertools.pairwise(masks):
        assert (larger | ~smaller).all()
    half = masks[0][: fed.masks.layers.whole[0].end] & masks[-1][: fed.masks.layers.whole[0].end]
    assert weights[: len(half)][half].abs().mean() > weights[: len(half)][masks[-1][: len(half)]].abs().mean()
    dense = fed.masks.total - PRUNABLE
    sent = [dense + 1331, dense + 1997, dense + BUDGET, dense + BUDGET]
    assert report["uplink_bytes"] == sum(HEADER_NBYTES + 4 * count for count in sent)
    assert report["mask_mismatch"] > 0.1


def test_a_cohort_of_one_small_budget_leaves_the_rest_of_the_consensus_as_the_others_would() -> None:
    for update_mode in ("mean", "masked_mean"):
        alone = single(play, config(method="spdst", hetero=((1.0, 0.5),), update_mode=update_mode))[0]
        alike = ((0.5, 0.5), (0.5, 0.4999999))
        assert torch.equal(alone, single(play, config(method="spdst", hetero=alike, update_mode=update_mode))[0])


@pytest.mark.parametrize("method", ["pdst", "spdst", "jmwst"])
def test_the_downlink_is_active_weights_and_what_is_new_in_masks(method: str) -> None:
    used = config(dataclasses.replace(BASE, clients=dataclasses.replace(BASE.clients, per_round=None)), method=method)
    *_, reports = single(play, used)
    active = 4 * 10 * (BUDGET + 16 * 26 + 32 + 4)
    first = 0 if method == "pdst" else 10 * 4 * 2  # the densities of two layers; the positions follow from the seed
    beyond = [row["downlink_bytes"] - active for row in reports[1:]]
    assert beyond[0] == first
    if method == "jmwst":
        assert all(0 < more < 0.2 * active for more in beyond[1:])
    else:
        assert beyond[1:] == [0, 0]
