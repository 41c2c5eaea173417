"""The masks of a run: densities are kept, pruned weights are zero, and checkpoints restore the masks."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flare_dist.clients.client import LocalTrainer
from flare_dist.comm.host import Host
from flare_dist.comm.world import World
from flare_dist.rounds.federated import federated_round
from flare_dist.server.config import ServerConfig
from flare_dist.sparse_training.config import SparseTrainingConfig
from flare_dist.sparse_training.consensus import Masks
from flare_dist.sparse_training.layers import Layers
from flare_dist.sparse_training.local_mask import LocalMask
from flare_dist.sparse_training.masks import largest_mask, layer_counts
from flare_dist.sparse_training.methods import METHODS
from flare_dist.sparse_training.schedule import moves_in
from tests.helpers.masks import BASE, BUDGET, HETERO, TOPK, begin, config, spy
from tests.helpers.sparse_runs import checkpointed, of_rank_0


@pytest.mark.parametrize("counts", ["exact", "faithful"])
@pytest.mark.parametrize("method", ["nst", "jmwst", "feddst"])
def test_density_is_kept_by_every_mask_update(counts: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = spy(monkeypatch)
    fed = begin(World(), config(method=method, counts=counts))
    assert isinstance(fed.masks, Masks)
    rounding = 2 if counts == "faithful" else 0  # one entry a layer
    layers = layer_counts(fed.masks.mask, fed.masks.layers)
    first = sum(layers)
    assert abs(first - BUDGET) <= (0 if counts == "exact" else 4 * (BUDGET * 0.8) ** 0.5)
    for round_ in range(1, 4):
        federated_round(round_, fed)
        for result, _, mask in seen:
            assert result.mask is not None
            assert result.mask is mask.mask
            active = sum(layer_counts(result.mask, fed.masks.layers))
            if method == "feddst":  # layers keep what they had
                assert layer_counts(result.mask, fed.masks.layers) == layers
            else:
                assert BUDGET <= active <= BUDGET + rounding
        active = sum(layer_counts(fed.masks.mask, fed.masks.layers))
        assert abs(active - BUDGET) <= (rounding if method == "jmwst" else abs(first - BUDGET))
        seen.clear()


@pytest.mark.parametrize("method", ["pdst", "nst", "spdst", "jmwst", "feddst", "prunefl"])
def test_pruned_weights_are_zero_after_every_local_step_and_on_the_server(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    plain = LocalTrainer._apply

    def mask_and_look(self: LocalTrainer, mask: LocalMask, step: int) -> None:
        before = int(self.model.parameters[~mask.mask].count_nonzero())
        plain(self, mask, step)
        steps.append((int(self.model.parameters[~mask.mask].count_nonzero()), before))

    monkeypatch.setattr(LocalTrainer, "_apply", mask_and_look)
    used = config(dataclasses.replace(BASE, server=ServerConfig(optimizer="adam", lr=0.01)), method=method)
    fed = begin(World(), used)
    assert isinstance(fed.masks, Masks)
    for round_ in range(1, 4):
        report = federated_round(round_, fed)
        outside = fed.server.parameters.detach()[~fed.masks.mask]
        moments = fed.server.optimizer.state[fed.server.parameters]
        if method == "nst":
            assert outside.any()  # a union, which is exempt
            assert report["active_weights"] > BUDGET
        else:
            assert not outside.any()
            assert not any(v[~fed.masks.mask].any() for v in moments.values() if v.shape == outside.shape)
            assert report["active_weights"] == BUDGET
            assert (report["dropped_moments"] > 0) == METHODS[method].server_moves
    assert max(after for after, _ in steps) == 0
    assert max(before for _, before in steps) > 0  # the optimizer had moved them


@pytest.mark.parametrize("method", ["nst", "jmwst", "feddst", "prunefl"])
def test_a_resumed_run_has_the_bits_of_a_straight_one(method: str, tmp_path: Path) -> None:
    used = config(dataclasses.replace(BASE, compression=TOPK), method=method, r_end=4)
    straight = checkpointed(tmp_path / "straight", used)
    checkpointed(tmp_path / "first", dataclasses.replace(used, rounds=2))
    resumed = checkpointed(tmp_path / "rest", used, resume=str(tmp_path / "first"))
    for name in ("model.safetensors", *(["model.masks.safetensors"] if method == "jmwst" else [])):
        weights = load_file(resumed / name)
        assert all(torch.equal(value, weights[key]) for key, value in load_file(straight / name).items())
    one, other = of_rank_0(straight, 3), of_rank_0(resumed, 3)
    assert one["server"]["masks"]["seen"] == other["server"]["masks"]["seen"]
    for client, state in one["clients"].items():
        assert all(torch.equal(vector, other["clients"][client][name]) for name, vector in state.items())
    rows = [(path / "metrics.jsonl").read_text().splitlines() for path in (straight, resumed)]
    for key in ("uplink_bytes", "downlink_bytes", "mask_mismatch", "layer_densities", "dropped_residuals"):
        assert [json.loads(line).get(key) for line in rows[0]] == [json.loads(line).get(key) for line in rows[1]]


def test_masks_of_other_settings_are_not_taken_over(tmp_path: Path) -> None:
    first = checkpointed(tmp_path / "first", config(dataclasses.replace(BASE, rounds=1), method="spdst"))
    for settings in ({"method": "spdst", "density": 0.3}, {"method": "nst"}, {"method": "spdst", "exclude": ("7.*",)}):
        with pytest.raises(ValueError, match=r"^checkpoint\.resume: the masks in the checkpoint have another"):
            checkpointed(tmp_path / "other", config(**settings), resume=str(first))
    hetero = checkpointed(tmp_path / "hetero", config(method="spdst", hetero=HETERO), resume=str(first))
    assert (hetero / "best.safetensors").exists()
    assert (hetero / "best.masks.safetensors").exists()


def test_feddst_begins_with_erdos_renyi_kernel_densities_and_keeps_them() -> None:
    used = config(method="feddst", exclude=(), density=0.05)
    fed = begin(World(), used)
    assert isinstance(fed.masks, Masks)
    entries, counts = fed.masks.layers.whole, layer_counts(fed.masks.mask, fed.masks.layers)
    assert sum(counts) == round(0.05 * sum(entry.numel for entry in entries))
    # d_l = min(1, s * sum of sizes / their product); the first convolution (16, 1, 5, 5) has 400 weights.
    scores = [sum(entry.shape) / entry.numel for entry in entries]
    free = [place for place, count in enumerate(counts) if count < entries[place].numel]
    scales = [counts[place] / entries[place].numel / scores[place] for place in free]
    assert max(scales) / min(scales) < 1.02
    assert all(scores[place] * max(scales) >= 0.99 for place in set(range(len(entries))) - set(free))
    for round_ in range(1, 4):
        report = federated_round(round_, fed)
        assert layer_counts(fed.masks.mask, fed.masks.layers) == counts
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
    layers = fed.masks.layers
    assert torch.equal(fed.masks.mask, largest_mask(mean, layers, layer_counts(before, layers), masks.any(0)))
    torch.testing.assert_close(fed.server.parameters.detach(), mean * fed.masks.mask)


def test_without_a_finite_gradient_the_mask_stays() -> None:
    fed = begin(World(), config(method="prunefl"))
    assert isinstance(fed.masks, Masks)
    before = fed.masks.mask.clone()
    now = moves_in(1, fed.masks.config, fed.masks.rounds)
    assert now.server
    fed.masks.move(now, fed.server, None, None)
    assert torch.equal(fed.masks.mask, before)


def test_a_model_too_long_for_positions_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got 2,147,483,648 in one sparse model"):
        Masks(SparseTrainingConfig(method="nst"), Layers.of([], Host()), 2**31, 0, 1, torch.device("meta"))
