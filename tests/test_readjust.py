"""FedDST and PruneFL: when masks move, which weights they keep, and what clients measure for it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flare_dist.comm.cohort import Cohort, mean_in_order
from flare_dist.comm.world import World
from flare_dist.compression.payload import WORD
from flare_dist.config.config import Config
from flare_dist.layout import parameter_layout
from flare_dist.models.registry import build
from flare_dist.rounds.federated import federated_round
from flare_dist.sparse_training.config import SparseTrainingConfig
from flare_dist.sparse_training.consensus import Masks
from flare_dist.sparse_training.masks import largest_mask, layer_counts
from flare_dist.sparse_training.prunable import prunable_entries
from flare_dist.sparse_training.pruning import PruningConfig
from flare_dist.sparse_training.readjust import readjusted_mask, uses_of
from flare_dist.sparse_training.schedule import MaskSchedule
from flare_dist.tasks.builtin import CLASSIFICATION
from tests.helpers.masks import BUDGET, ENTRIES, PRUNABLE, TOTAL, begin, config, draws, local_mask, spy


@pytest.mark.parametrize("method", ["feddst", "prunefl"])
def test_the_rate_falls_as_a_cosine_over_the_rounds_and_masks_rest_when_it_is_zero(method: str) -> None:
    schedule = MaskSchedule(SparseTrainingConfig(method=method, prune_rate=0.4, r_int=2, r_end=9), rounds=20)
    assert schedule.rate(1) == 0.4
    assert schedule.rate(5) == pytest.approx(0.2)
    assert schedule.rate(3) == pytest.approx(0.2 * (1 + math.cos(math.pi / 4)))
    assert [round_ for round_ in range(1, 21) if schedule.server_moves_in(round_)] == [1, 3, 5, 7]
    assert [r for r in range(1, 21) if schedule.measures_in(r)] == ([1, 3, 5, 7] if method == "prunefl" else [])
    to_the_end = MaskSchedule(SparseTrainingConfig(method=method), rounds=20)
    assert to_the_end.server_moves_in(20)
    assert to_the_end.rate(20) > 0


def test_feddst_s_clients_move_once_a_round() -> None:
    schedule = MaskSchedule(SparseTrainingConfig(method="feddst", prune_rate=0.4), rounds=4)
    assert schedule.rates(1, 12, 4) == {6: 0.4}
    assert schedule.rates(3, 12, 4) == {6: pytest.approx(0.2)}
    assert MaskSchedule(SparseTrainingConfig(method="prunefl"), 4).rates(1, 12, 4) == {}


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


def test_feddst_begins_with_erdos_renyi_kernel_densities_and_keeps_them() -> None:
    used = config(method="feddst", exclude=(), density=0.05)
    fed = begin(World(), used)
    assert isinstance(fed.masks, Masks)
    entries, counts = fed.masks.entries, layer_counts(fed.masks.mask, fed.masks.entries)
    assert sum(counts) == round(0.05 * sum(entry.numel for entry in entries))
    # d_l = min(1, s * sum of sizes / their product); the first convolution (16, 1, 5, 5) has 400 weights.
    scores = [sum(entry.shape) / entry.numel for entry in entries]
    free = [place for place, count in enumerate(counts) if count < entries[place].numel]
    scales = [counts[place] / entries[place].numel / scores[place] for place in free]
    assert max(scales) / min(scales) < 1.02
    assert all(scores[place] * max(scales) >= 0.99 for place in set(range(len(entries))) - set(free))
    for round_ in range(1, 4):
        report = federated_round(round_, fed)
        assert layer_counts(fed.masks.mask, entries) == counts
        assert report["mask_mismatch"] > 0


def test_feddst_s_server_averages_over_those_who_have_a_weight_and_keeps_the_largest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = spy(monkeypatch)
    used = config(method="feddst")
    fed = begin(World(), used)
    assert isinstance(fed.masks, Masks)
    before = fed.masks.mask.clone()
    federated_round(1, fed)
    masks = torch.stack([result.mask for result, _, _ in seen if result.mask is not None])
    models = torch.stack([local for _, local, _ in seen])
    mean = (models * masks).sum(0) / masks.sum(0).clamp(min=1)
    entries = fed.masks.entries
    assert torch.equal(fed.masks.mask, largest_mask(mean, entries, layer_counts(before, entries), masks.any(0)))
    torch.testing.assert_close(fed.server.parameters.detach(), mean * fed.masks.mask)


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
    before, keep = layer_counts(mask, ENTRIES), sum(layer_counts(mask, ENTRIES))
    new = readjusted_mask(ENTRIES, weights, mask, squares, uses, rate, keep)
    assert sum(layer_counts(new, ENTRIES)) == keep
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
    entries = fed.masks.entries
    new = readjusted_mask(entries, _unmasked(seen, start), before, mean, fed.masks.uses, 0.25, BUDGET)
    assert torch.equal(fed.masks.mask, new)
    assert report["mask_bytes"] == 4 * WORD * PRUNABLE
    common = sum(layer_counts(before, entries)) + fed.masks.total - PRUNABLE
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


def test_a_mean_in_order_leaves_out_what_is_not_finite() -> None:
    cohort = Cohort(dict.fromkeys((1, 2, 5), 0), {1: 0.2, 2: 0.3, 5: 0.5})
    own = {1: torch.tensor([1.0, 2.0]), 2: torch.tensor([math.inf, 0.0]), 5: torch.tensor([3.0, 4.0])}
    mean, finite = mean_in_order(World(), cohort, own, 2)
    assert finite == [1, 5]
    torch.testing.assert_close(mean, torch.tensor([1.7, 2.4]) / 0.7)
    assert mean_in_order(World(), cohort, dict.fromkeys(own, torch.full((2,), math.nan)), 2) == (None, [])


def test_without_a_finite_gradient_the_mask_stays() -> None:
    fed = begin(World(), config(method="prunefl"))
    assert isinstance(fed.masks, Masks)
    before = fed.masks.mask.clone()
    fed.masks.move(1, fed.server, None, None)
    assert torch.equal(fed.masks.mask, before)


def test_feddst_has_defaults_of_its_own() -> None:
    assert SparseTrainingConfig(method="feddst").resolved_update_mode == "masked_mean"
    assert SparseTrainingConfig(method="feddst").resolved_growth == "gradient"
    assert SparseTrainingConfig(method="jmwst").resolved_growth == "random"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r_end": 0}, "sparse_training.r_end: out of range, got 0; choose at least 1"),
        (
            {"hetero": ((0.5, 0.5), (0.5, 1.0))},
            "sparse_training.hetero: needs spdst or jmwst, .* with sparse_training.method=feddst; .*",
        ),
    ],
)
def test_what_cannot_be_is_said_in_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        SparseTrainingConfig(method="feddst", **settings)
