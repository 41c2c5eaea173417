"""Pruning scores against small closed forms and against their definitions in float64, and the stage that takes them."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

from flare_dist.comm.world import World
from flare_dist.config.config import Config
from flare_dist.layout import Entry
from flare_dist.models.config import ModelConfig
from flare_dist.rounds.diverged import DivergedError
from flare_dist.rounds.federated import federated_round
from flare_dist.rounds.setup import set_up_federation
from flare_dist.rounds.stage_one import begin_masks
from flare_dist.sparse_training.consensus import Masks
from flare_dist.sparse_training.criteria import CRITERIA, flow, gradient, hessian_gradient
from flare_dist.sparse_training.masks import layer_counts
from flare_dist.sparse_training.pruning import PruningConfig, highest, layer_shares
from flare_dist.tasks.builtin import CLASSIFICATION
from tests.helpers.masks import BASE, BUDGET, PRUNABLE, config
from tests.ranks import run_ranks, single

QUIET = Console(quiet=True)
CPU = torch.device("cpu")


def pruned(base: Config = BASE, density: float = 0.2, **settings: Any) -> Config:
    return dataclasses.replace(config(base, method="pruned", density=density), pruning=PruningConfig(**settings))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def batches(seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    rng = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(n, 3, generator=rng, dtype=torch.float64), torch.randint(2, (n,), generator=rng)) for n in (5, 3)
    ]


def weight(module: nn.Sequential, place: int) -> Tensor:
    layer = module[place]
    assert isinstance(layer, nn.Linear)
    return layer.weight


def bias(module: nn.Sequential, place: int) -> Tensor:
    layer = module[place]
    assert isinstance(layer, nn.Linear)
    return layer.bias


def loss_of(module: nn.Sequential, flat: Tensor) -> Tensor:
    """The mean loss over all batches as a function of the two weight matrices."""
    first, second = flat[:12].view(4, 3), flat[12:].view(2, 4)
    inputs, labels = (torch.cat(parts) for parts in zip(*batches()))
    hidden = torch.tanh(F.linear(inputs, first, bias(module, 0)))
    return F.cross_entropy(F.linear(hidden, second, bias(module, 2)), labels)


def weights_of(module: nn.Sequential) -> tuple[list[Tensor], Tensor]:
    weights: list[Tensor] = [weight(module, 0), weight(module, 2)]
    return weights, torch.cat([w.detach().flatten() for w in weights])


def test_the_gradient_is_that_of_the_mean_loss_over_all_batches() -> None:
    module = net()
    weights, flat = weights_of(module)
    expected = torch.autograd.functional.jacobian(lambda w: loss_of(module, w), flat)
    measured = torch.cat([part.flatten() for part in gradient(module, weights, batches(), CLASSIFICATION)])
    torch.testing.assert_close(measured, expected, rtol=0, atol=1e-12)
    snip = CRITERIA["snip"].finish(flat, measured)
    torch.testing.assert_close(snip, (flat * expected).abs(), rtol=0, atol=1e-12)
    torch.testing.assert_close(CRITERIA["threshold"].finish(flat, measured), expected.abs(), rtol=0, atol=1e-12)


def test_grasp_is_the_weight_times_the_hessian_times_the_gradient() -> None:
    module = net()
    weights, flat = weights_of(module)
    hessian = torch.autograd.functional.hessian(lambda w: loss_of(module, w), flat)
    slope = torch.autograd.functional.jacobian(lambda w: loss_of(module, w), flat)
    measured = torch.cat([part.flatten() for part in hessian_gradient(module, weights, batches(), CLASSIFICATION)])
    torch.testing.assert_close(measured, hessian @ slope, rtol=0, atol=1e-12)
    torch.testing.assert_close(CRITERIA["grasp"].finish(flat, measured), flat * (hessian @ slope), rtol=0, atol=1e-12)


def test_synflow_of_a_chain_is_the_product_of_the_paths_through_each_weight() -> None:
    """R = sum over paths of products of |w|: for 2 x 2 matrices each weight's share is worked out by hand."""
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.ReLU(), nn.Linear(2, 2), nn.Softmax(dim=1))
    first, second = torch.tensor([[1.0, -2.0], [3.0, 4.0]]), torch.tensor([[-5.0, 6.0], [7.0, 8.0]])
    weight(module, 0).data, weight(module, 3).data = first, second
    module.eval()
    measured = flow(
        module, [weight(module, 0), weight(module, 3)], [(torch.zeros(1, 2), torch.zeros(1))], CLASSIFICATION
    )
    # columns of the second: 12 and 14; rows of the first: 3 and 7
    scores = [CRITERIA["synflow"].finish(w.double(), m) for w, m in zip((first, second), measured)]
    expected = [torch.tensor([[12.0, 24.0], [42.0, 56.0]]), torch.tensor([[15.0, 42.0], [21.0, 56.0]])]
    for found, wanted in zip(scores, expected):
        torch.testing.assert_close(found * 14, wanted.double(), rtol=0, atol=1e-12)  # scores are up to a factor
    assert all(torch.equal(p, q) for p, q in zip((weight(module, 0), weight(module, 3)), (first, second)))
    assert weight(module, 0).dtype == torch.float32
    assert "forward" not in vars(module[1])
    assert not module.state_dict()["1.running_mean"].any()


def test_a_look_at_the_data_leaves_the_model_as_it_was() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    module.eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    data = [(inputs.float(), labels) for inputs, labels in batches()]
    for measure in (gradient, hessian_gradient, flow):
        measure(module, [weight(module, 0), weight(module, 3)], data, CLASSIFICATION)
        assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
        assert all(p.grad is None for p in module.parameters())
        assert not module.training


def test_the_highest_scores_are_kept_globally_or_by_layer() -> None:
    entries = (Entry("a", (10,), 0), Entry("b", (5, 8), 12))
    scores = torch.rand(52, generator=torch.Generator().manual_seed(0))
    everything = torch.ones(52, dtype=torch.bool)
    mask = highest(scores, entries, 12, everything, None)
    prunable = torch.cat([scores[:10], scores[12:]])
    kept = torch.cat([mask[:10], mask[12:]])
    assert (int(kept.sum()), bool(mask[10:12].all())) == (12, True)
    assert prunable[kept].min() > prunable[~kept].max()
    again = highest(scores, entries, 6, mask, None)
    assert (mask | ~again).all()
    assert layer_counts(highest(scores, entries, 20, everything, layer_shares("uniform", entries)), entries) == [4, 16]
    # ERK: 10 / 10 against 13 / 40 of the weights
    assert layer_counts(highest(scores, entries, 18, everything, layer_shares("erk", entries)), entries) == [8, 10]
    tied = highest(torch.ones(52), entries, 12, everything, None)
    assert layer_counts(tied, entries) == [10, 2]
    lopsided = highest(scores * (torch.arange(52) < 12), entries, 5, everything, None)
    assert layer_counts(lopsided, entries) == [4, 1]  # no layer dies


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


def test_a_federated_score_is_that_of_the_clients_mean_gradient() -> None:
    used = pruned(frac=1.0, batches=100, criterion="snip")
    fed = set_up_federation(used, World())
    start = fed.server.parameters.detach().clone()
    begin_masks(fed, QUIET)
    assert isinstance(fed.masks, Masks)
    module, source = fed.clients.trainer.model.module, fed.clients.trainer.source
    fed.clients.trainer.model.load(start, fed.server.buffers)
    named = dict(module.named_parameters())
    weights = [named[entry.name] for entry in fed.masks.entries]
    total = [torch.zeros_like(weight) for weight in weights]
    for part in fed.clients.partition:  # uniform weighting
        ((inputs, labels),) = source.batches(part, len(part), None)
        for slot, own in zip(total, torch.autograd.grad(F.cross_entropy(module(inputs), labels), weights)):
            slot.add_(own, alpha=0.1)
    scores = torch.cat([(w * g).abs().flatten() for w, g in zip(weights, total)]).detach()
    kept = torch.cat([fed.masks.mask[e.offset : e.end] for e in fed.masks.entries])
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
    fed.clients.trainer.source.labels = fed.clients.trainer.source.labels - 10
    with pytest.raises(ValueError, match=r"^pruning\.criterion: snip needs labels, and some examples have none"):
        begin_masks(fed, QUIET)
    fed = set_up_federation(pruned(), World())
    fed.clients.trainer.source.inputs = fed.clients.trainer.source.inputs.float() * float("nan")
    with pytest.raises(DivergedError, match="pruning: what snip measures is not finite on any client"):
        begin_masks(fed, QUIET)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"criterion": "obd"},
            "pruning.criterion: unknown choice, got 'obd'; "
            "choose from magnitude, random, snip, grasp, synflow, threshold",
        ),
        ({"scope": "layer"}, "pruning.scope: unknown choice, got 'layer'; choose from global, erk, uniform"),
        ({"data": "all"}, "pruning.data: unknown choice, got 'all'; choose from clients, server"),
        ({"steps": 0}, "pruning.steps: out of range, got 0; choose at least 1"),
        ({"batches": 0}, "pruning.batches: out of range, got 0; choose at least 1"),
        ({"frac": 0.0}, "pruning.frac: out of range, got 0.0; choose a number in (0, 1]"),
        ({"threshold": -1.0}, "pruning.threshold: out of range, got -1.0; choose at least 0"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        PruningConfig(**settings)


def test_synflow_of_a_resnet_is_finite() -> None:
    used = dataclasses.replace(pruned(criterion="synflow", steps=2), model=ModelConfig(name="resnet8", norm="batch"))
    used = dataclasses.replace(used, sparse_training=dataclasses.replace(used.sparse_training, exclude=()))
    _, row = single(stage, used)
    assert row["active_weights"] == round(0.2 * sum(used_numel(used)))
    assert min(row["layer_densities"].values()) > 0


def used_numel(used: Config) -> list[int]:
    fed = set_up_federation(used, World())
    assert isinstance(fed.masks, Masks)
    return [entry.numel for entry in fed.masks.entries]
