"""Pruning before the rounds: scores are federated, and the masks are the same on any number of ranks."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from flare_dist.comm.world import World
from flare_dist.config.config import Config
from flare_dist.models.config import ModelConfig
from flare_dist.rounds.build_run import set_up_federation
from flare_dist.rounds.diverged import DivergedError
from flare_dist.rounds.federated import federated_round
from flare_dist.rounds.stage_one import begin_masks
from flare_dist.sparse_training.consensus import Masks
from flare_dist.sparse_training.criteria import CRITERIA
from flare_dist.sparse_training.pruning import PruningConfig
from tests.helpers.batches import resident
from tests.helpers.masks import BASE, BUDGET, PRUNABLE, QUIET, config
from tests.ranks import run_ranks, single


def pruned(base: Config = BASE, density: float = 0.2, **settings: Any) -> Config:
    return dataclasses.replace(config(base, method="pruned", density=density), pruning=PruningConfig(**settings))


def stage(world: World, used: Config) -> tuple[Tensor, dict[str, Any]]:
    fed = set_up_federation(used, world)
    row = begin_masks(fed, QUIET)
    assert isinstance(fed.masks, Masks)
    return fed.masks.mask, row


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("scope", ["global", "erk"])
def test_masks_are_the_same_on_one_rank_and_on_two(criterion: str, scope: str) -> None:
    torch.set_num_threads(1)
    used = pruned(criterion=criterion, scope=scope, frac=0.3, batches=2, threshold=1e-4, steps=2)
    mask, row = single(stage, used)
    assert row["active_weights"] == BUDGET
    for other, _ in run_ranks(stage, 2, used):
        assert torch.equal(mask, other)
    asks = CRITERIA[criterion].needs_data
    steps = PRUNABLE + round((0.2**0.5) * PRUNABLE)
    assert row["uplink_bytes"] == (3 * 4 * steps if asks else 0)
    assert row["clients"] == (3 if asks else 0)


def stage_with_noise(world: World, used: Config) -> Tensor:
    """The mask of a rank whose own scores are a little different, as those of another GPU may be."""
    own = CRITERIA["magnitude"]
    draws = torch.Generator().manual_seed(world.rank)

    def noisy(weight: Tensor, measured: Tensor) -> Tensor:
        return own.finish(weight, measured) + 1e-3 * torch.rand(weight.shape, generator=draws)

    CRITERIA["magnitude"] = own._replace(finish=noisy)
    return stage(world, used)[0]


def test_all_ranks_have_the_mask_of_the_first() -> None:
    first, second = run_ranks(stage_with_noise, 2, pruned(criterion="magnitude"))
    assert torch.equal(first, second)


def test_a_federated_score_is_that_of_the_clients_mean_gradient() -> None:
    used = pruned(frac=1.0, batches=100, criterion="snip")
    fed = set_up_federation(used, World())
    start = fed.server.parameters.detach().clone()
    begin_masks(fed, QUIET)
    assert isinstance(fed.masks, Masks)
    module, source = fed.clients.trainer.model.module, fed.clients.trainer.source
    fed.clients.trainer.model.load(start, fed.server.buffers)
    named = dict(module.named_parameters())
    weights = [named[entry.name] for entry in fed.masks.layers.whole]
    total = [torch.zeros_like(weight) for weight in weights]
    for part in fed.clients.partition:  # uniform weighting
        ((inputs, labels),) = source.batches(part, len(part), None)
        for slot, own in zip(total, torch.autograd.grad(F.cross_entropy(module(inputs), labels), weights)):
            slot.add_(own, alpha=0.1)
    scores = torch.cat([(w * g).abs().flatten() for w, g in zip(weights, total)]).detach()
    kept = torch.cat([fed.masks.mask[e.offset : e.end] for e in fed.masks.layers.whole])
    assert scores[kept].min() >= scores[~kept].max() - 1e-9


def test_the_threshold_keeps_what_reaches_it_and_at_most_the_density() -> None:
    few = single(stage, pruned(criterion="threshold", threshold=0.1))[1]["active_weights"]
    assert 0 < few < BUDGET
    assert single(stage, pruned(criterion="threshold", threshold=0.0))[1]["active_weights"] == BUDGET


def test_the_server_may_look_at_what_it_holds_out() -> None:
    held = dataclasses.replace(BASE, data=dataclasses.replace(BASE.data, validation=0.2))
    row = single(stage, pruned(held, data="server"))[1]
    assert (row["uplink_bytes"], row["clients"], row["active_weights"]) == (0, 0, BUDGET)
    with pytest.raises(ValueError, match=r"^pruning\.data: the server has examples only if data\.validation holds"):
        pruned(data="server")


def test_training_goes_on_under_the_mask_and_clients_are_told_it_once() -> None:
    used = pruned(dataclasses.replace(BASE, clients=dataclasses.replace(BASE.clients, per_round=None)))
    fed = set_up_federation(used, World())
    begin_masks(fed, QUIET)
    assert isinstance(fed.masks, Masks)
    reports = [federated_round(round_, fed) for round_ in (1, 2)]
    assert not fed.server.parameters.detach()[~fed.masks.mask].any()
    active = 10 * 4 * (BUDGET + fed.masks.total - PRUNABLE)
    assert [row["uplink_bytes"] for row in reports] == [active, active]
    told = [row["downlink_bytes"] - active for row in reports]
    assert told[0] > 0 == told[1]
    assert all(row["active_weights"] == BUDGET for row in reports)


def test_examples_without_labels_and_gradients_that_are_not_finite_are_said() -> None:
    fed = set_up_federation(pruned(), World())
    source = resident(fed.clients.trainer.source)
    source.labels = source.labels - 10
    with pytest.raises(ValueError, match=r"^pruning\.criterion: snip needs labels, and some examples have none"):
        begin_masks(fed, QUIET)
    fed = set_up_federation(pruned(), World())
    source = resident(fed.clients.trainer.source)
    source.inputs = source.inputs.float() * float("nan")
    with pytest.raises(DivergedError, match="pruning: what snip measures is not finite on any client"):
        begin_masks(fed, QUIET)


def test_synflow_of_a_resnet_is_finite() -> None:
    used = dataclasses.replace(pruned(criterion="synflow", steps=2), model=ModelConfig(name="resnet8", norm="batch"))
    used = dataclasses.replace(used, sparse_training=dataclasses.replace(used.sparse_training, exclude=()))
    _, row = single(stage, used)
    assert row["active_weights"] == round(0.2 * sum(used_numel(used)))
    assert min(row["layer_densities"].values()) > 0


def used_numel(used: Config) -> list[int]:
    fed = set_up_federation(used, World())
    assert isinstance(fed.masks, Masks)
    return [entry.numel for entry in fed.masks.layers.whole]
