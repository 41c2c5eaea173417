"""Readjustment by measured gradients: clients measure all weights, and the server keeps the best over time."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flare_dist.comm.world import World
from flare_dist.compression.payload import WORD
from flare_dist.config.config import Config
from flare_dist.layout import parameter_layout
from flare_dist.models.registry import build
from flare_dist.rounds.federated import federated_round
from flare_dist.sparse_training.config import SparseTrainingConfig
from flare_dist.sparse_training.consensus import Masks
from flare_dist.sparse_training.masks import layer_counts
from flare_dist.sparse_training.prunable import prunable_entries
from flare_dist.sparse_training.pruning import PruningConfig
from flare_dist.sparse_training.readjust import readjusted_mask, uses_of
from flare_dist.tasks.builtin import CLASSIFICATION
from tests.helpers.masks import BUDGET, ENTRIES, LAYERS, PRUNABLE, TOTAL, begin, config, draws, spy


@pytest.mark.parametrize("name", ["cnn", "2nn"])
def test_a_weight_of_a_convolution_is_used_at_every_place_of_its_output(name: str) -> None:
    module = build(name, "group", (1, 8, 12), 4, 0, CLASSIFICATION)
    entries = prunable_entries(module, parameter_layout(module), SparseTrainingConfig(layers="all", density=0.5))
    expected = {"cnn": [96.0, 24.0, 1.0], "2nn": [1.0, 1.0, 1.0]}[name]
    assert uses_of(module, entries, torch.zeros(1, 1, 8, 12)) == expected


def test_a_look_at_the_uses_trains_nothing() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    entries = prunable_entries(module, parameter_layout(module), SparseTrainingConfig(density=0.5))
    assert uses_of(module, entries, torch.ones(1, 1, 5, 5)) == [9.0]
    assert not dict(module.named_buffers())["1.running_mean"].any()
    assert module.training
    assert not module[0]._forward_hooks


@pytest.mark.parametrize("rate", [0.0, 0.25, 0.9])
def test_what_is_readjusted_is_the_best_by_importance_over_time(rate: float) -> None:
    weights, squares = torch.randn(TOTAL, generator=draws(1)), torch.rand(TOTAL, generator=draws(2))
    mask = torch.rand(TOTAL, generator=draws(3)) < 0.1
    mask[60:65] = True  # not prunable
    uses = [4.0, 2.0, 1.0]
    before, keep = layer_counts(mask, LAYERS), sum(layer_counts(mask, LAYERS))
    new = readjusted_mask(LAYERS, weights, mask, squares, uses, rate, keep)
    assert sum(layer_counts(new, LAYERS)) == keep
    assert new[60:65].all()
    # By hand, in float64: what stays for its size, then the others by g^2 / t.
    stays, rest = set(), []
    for entry, active, time in zip(ENTRIES, before, uses):
        own = [place for place in range(entry.offset, entry.end) if mask[place]]
        own.sort(key=lambda place: -abs(float(weights[place])))
        stays |= set(own[: active - int(rate * active)])
        rest += [(float(squares[place]) / time, place) for place in range(entry.offset, entry.end)]
    best = sorted((pair for pair in rest if pair[1] not in stays), reverse=True)[: keep - len(stays)]
    expected = stays | {place for _, place in best}
    assert {place for e in ENTRIES for place in range(e.offset, e.end) if new[place]} == expected
    assert rate or torch.equal(new, mask)


def test_prunefl_s_clients_measure_the_gradients_of_all_weights_and_the_server_follows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = spy(monkeypatch)
    used = dataclasses.replace(config(method="prunefl", r_int=2), pruning=PruningConfig(criterion="random"))
    fed = begin(World(), used)
    assert isinstance(fed.masks, Masks)
    before, start = fed.masks.mask.clone(), fed.server.parameters.detach().clone()
    report = federated_round(1, fed)
    result = seen[0][0]
    expected = _squares_by_hand(used, fed, result.client, start, before)
    assert result.squares is not None
    torch.testing.assert_close(result.squares.double(), expected, rtol=1e-3, atol=1e-9)
    assert result.squares[~before].any()  # of weights that are not active, too
    mean = torch.stack([found.squares for found, _, _ in seen if found.squares is not None]).mean(0)  # uniform weights
    layers = fed.masks.layers
    new = readjusted_mask(layers, _unmasked(seen, start), before, mean, fed.masks.uses, 0.25, BUDGET)
    assert torch.equal(fed.masks.mask, new)
    assert report["mask_bytes"] == 4 * WORD * PRUNABLE
    common = sum(layer_counts(before, layers)) + fed.masks.total - PRUNABLE
    assert report["uplink_bytes"] == 4 * WORD * (common + PRUNABLE)
    later = federated_round(2, fed)
    assert (later["mask_bytes"], later["uplink_bytes"]) == (0, 4 * WORD * common)
    assert torch.equal(fed.masks.mask, new)


def _unmasked(seen: list[Any], start: Tensor) -> Tensor:
    """The server's parameters before it masks them: the mean of the clients' models."""
    return torch.stack([start + (local - start) for _, local, _ in seen]).mean(0)


def _squares_by_hand(used: Config, fed: Any, client: int, start: Tensor, mask: Tensor) -> Tensor:
    """The sum of squared gradients over a client's local steps, by plain SGD with momentum in float64."""
    model = fed.clients.trainer.model
    module = build(used.model.name, "group", (1, 8, 8), 4, 0, CLASSIFICATION).double()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(dict(model.layout.views(start))[name])
    masks = dict(model.layout.views(mask))
    optimizer = torch.optim.SGD(module.parameters(), used.clients.lr, used.clients.momentum)
    total = torch.zeros(len(start), dtype=torch.float64)
    for inputs, labels in fed.clients.trainer._batches(client, 1, fed.clients.partition[client]):
        optimizer.zero_grad()
        F.cross_entropy(module(inputs.double()), labels).backward()
        for name, view in model.layout.views(total):
            gradient = dict(module.named_parameters())[name].grad
            assert gradient is not None
            view += gradient**2
        optimizer.step()
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.mul_(masks[name])
    return total
