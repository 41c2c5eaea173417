"""Sparse models in whole rounds: the laws of masks, on clients, on the server, in what travels and in checkpoints."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.nn.utils import prune

from flare_dist.analysis.bandwidth import totals
from flare_dist.analysis.run_logs import read_run
from flare_dist.cli import main
from flare_dist.clients.client import ClientResult, LocalTrainer
from flare_dist.clients.config import ClientsConfig
from flare_dist.comm.launch import Launch
from flare_dist.comm.message import HEADER_NBYTES
from flare_dist.comm.world import World
from flare_dist.compression.config import CompressionConfig
from flare_dist.compression.masked import HEADER, change_nbytes
from flare_dist.compression.payload import Masked
from flare_dist.config.config import CheckpointConfig, Config
from flare_dist.config.load import load_config
from flare_dist.data.config import DataConfig, SyntheticConfig
from flare_dist.models.config import ModelConfig
from flare_dist.models.registry import build
from flare_dist.rounds.diverged import DivergedError
from flare_dist.rounds.federated import federated_round
from flare_dist.rounds.setup import set_up_federation
from flare_dist.rounds.stage_one import begin_masks
from flare_dist.run.trainer import train
from flare_dist.server.config import ServerConfig
from flare_dist.sparse_training.aggregation import GatheredMasks, masked_mean_of_models, mean_of_models
from flare_dist.sparse_training.config import SparseTrainingConfig
from flare_dist.sparse_training.consensus import Masks
from flare_dist.sparse_training.local_mask import LocalMask
from flare_dist.sparse_training.masks import layer_counts
from flare_dist.sparse_training.methods import METHODS
from flare_dist.tasks.builtin import CLASSIFICATION
from tests.helpers.masks import BASE, BUDGET, HETERO, PRUNABLE, QUIET, TOPK, begin, config, play, spy
from tests.ranks import run_ranks, single


@pytest.mark.parametrize(
    "used",
    [
        config(method="pdst"),
        config(method="nst"),
        config(method="spdst", hetero=HETERO),
        config(method="jmwst"),
        config(method="jmwst", r_int=2, hetero=HETERO, growth="gradient"),
        config(method="jmwst", subsample="aggregate", counts="faithful"),
        config(method="feddst"),
        config(method="prunefl"),
        config(dataclasses.replace(BASE, compression=TOPK), method="prunefl"),
        config(dataclasses.replace(BASE, compression=TOPK), method="nst"),
        config(dataclasses.replace(BASE, compression=TOPK, server=ServerConfig(momentum=0.9)), method="jmwst"),
    ],
    ids=lambda used: f"{used.sparse_training.method}-{used.compression.sparsifier}-{len(used.sparse_training.hetero)}",
)
def test_masks_and_models_are_the_same_on_one_rank_and_on_two(used: Config) -> None:
    parameters, mask, clients, reports = single(play, used)
    ranks = run_ranks(play, 2, used)
    for own_parameters, own_mask, _, _ in ranks:
        assert torch.equal(own_mask, mask)
        exact = not used.compression.is_dense or METHODS[used.sparse_training.method].clients_move
        # Dense payloads under one mask are summed before the wire: equal to rounding.
        torch.testing.assert_close(own_parameters, parameters, rtol=0 if exact else 1e-5, atol=0 if exact else 1e-6)
    homed = ranks[0][2] | ranks[1][2]
    assert sorted(homed) == sorted(clients)
    for client, state in clients.items():
        for name, vector in state.items():
            assert torch.equal(homed[client][name], vector)
    timeless = [{k: v for k, v in row.items() if not k.endswith("_seconds")} for row in reports]
    for row, other in zip(timeless, ranks[0][3]):
        for key in row.keys() - {"wire_bytes", "collectives", "ranks", "train_loss"}:
            assert other[key] == row[key], key


@pytest.mark.parametrize("counts", ["exact", "faithful"])
@pytest.mark.parametrize("method", ["nst", "jmwst", "feddst"])
def test_density_is_kept_by_every_mask_update(counts: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = spy(monkeypatch)
    fed = begin(World(), config(method=method, counts=counts))
    assert isinstance(fed.masks, Masks)
    rounding = 2 if counts == "faithful" else 0  # one entry a layer
    layers = layer_counts(fed.masks.mask, fed.masks.entries)
    first = sum(layers)
    assert abs(first - BUDGET) <= (0 if counts == "exact" else 4 * (BUDGET * 0.8) ** 0.5)
    for round_ in range(1, 4):
        federated_round(round_, fed)
        for result, _, mask in seen:
            assert result.mask is not None
            assert result.mask is mask.mask
            active = sum(layer_counts(result.mask, fed.masks.entries))
            if method == "feddst":  # layers keep what they had
                assert layer_counts(result.mask, fed.masks.entries) == layers
            else:
                assert BUDGET <= active <= BUDGET + rounding
        active = sum(layer_counts(fed.masks.mask, fed.masks.entries))
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


def test_stage_one_sends_one_number_for_each_layer_and_nothing_of_the_models() -> None:
    fed = set_up_federation(BASE, World())
    before = fed.server.parameters.detach().clone()
    row = begin_masks(fed, QUIET)
    assert isinstance(fed.masks, Masks)
    assert (row["clients"], row["uplink_bytes"]) == (2, 2 * 4 * 2)
    found = row["stage_one"]
    assert [len(layers) for layers in found["sensitivities"].values()] == [2, 2]
    assert sum(d * e.numel for d, e in zip(found["densities"], fed.masks.entries)) == pytest.approx(BUDGET)
    assert list(row["layer_densities"].values()) == pytest.approx(found["densities"])
    assert torch.equal(fed.server.parameters.detach(), before * fed.masks.mask)


def test_stage_one_begins_with_nothing_remembered_for_the_objective() -> None:
    clients = dataclasses.replace(BASE.clients, objective="feddyn", weighting="uniform")
    reports = play(World(), dataclasses.replace(BASE, clients=clients, rounds=1))[3]
    assert [report["rejected_clients"] for report in reports] == [0, 0]


def _stage_one_wire(world: World) -> int:
    return int(begin_masks(set_up_federation(BASE, world), QUIET)["wire_bytes"])


def test_on_the_wire_of_stage_one_there_are_only_these_numbers() -> None:
    assert run_ranks(_stage_one_wire, 2) == [2 * 4 * 4, 2 * 4 * 4]  # an all-reduce of 2 clients x 2 layers


def test_equal_masks_make_the_masked_mean_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    still = config(prune_rate=0.0)  # masks travel, and never move
    mean, *_, reports = single(play, still)
    masked, *_ = single(play, config(still, update_mode="masked_mean"))
    assert torch.equal(mean, masked)
    assert reports[-1]["mask_mismatch"] == 0.0
    assert reports[-1]["mask_bytes"] == 4 * HEADER
    moving = single(play, config())[0], single(play, config(update_mode="masked_mean"))[0]
    assert not torch.equal(*moving)


@pytest.mark.parametrize("update_mode", ["mean", "masked_mean"])
@pytest.mark.parametrize("hetero", [(), HETERO])
def test_the_server_has_the_mean_of_the_clients_models(
    update_mode: str, hetero: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = spy(monkeypatch)
    used = config(update_mode=update_mode, hetero=hetero)
    fed = begin(World(), used)
    assert isinstance(fed.masks, Masks)
    for round_ in (1, 2, 3):
        seen.clear()
        federated_round(round_, fed)
        models = torch.stack([parameters.double() for _, parameters, _ in seen])
        masks = torch.stack([result.mask.double() for result, _, _ in seen if result.mask is not None])
        holders = masks.sum(0)
        expected = models.sum(0) / (len(models) if update_mode == "mean" else holders.clamp(min=1))
        consensus = fed.masks.mask  # made of the aggregate's largest weights
        torch.testing.assert_close(
            fed.server.parameters.detach()[consensus].double(), expected[consensus], rtol=1e-5, atol=1e-6
        )
        for entry in fed.masks.entries:
            own = slice(entry.offset, entry.end)
            left_out = expected[own][~consensus[own] & (holders[own] > 0)].abs()
            assert not left_out.numel() or left_out.max() <= expected[own][consensus[own]].abs().min() + 1e-6


def test_a_weight_that_nobody_has_becomes_zero_under_both_means() -> None:
    parameters, sent = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 0.25, 0.0])
    for combine, expected in (
        (mean_of_models, [1.5, 2.0 * 0.25 + 0.25, 0.0]),
        (masked_mean_of_models, [1.5, 2.0 + 0.25 / 0.25, 0.0]),
    ):
        gathered = GatheredMasks(3, torch.device("cpu"))
        for weight, mask in ((0.25, [True, True, False]), (0.75, [True, False, False])):
            gathered.add(_with_mask(torch.tensor(mask)), weight)
        combined = parameters + combine(sent.clone(), parameters, gathered)
        torch.testing.assert_close(combined, torch.tensor(expected))


def _with_mask(mask: Tensor) -> Masked:
    none = torch.empty(0)
    return Masked(none.int(), none, none.byte(), mask, 7)


def test_smaller_budgets_train_nested_parts_of_the_consensus(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = spy(monkeypatch)
    used = config(method="spdst", hetero=HETERO)
    fed = begin(World(), used)
    assert isinstance(fed.masks, Masks)
    federated_round(1, fed)
    assert {sum(layer_counts(mask.mask, fed.masks.entries)) for *_, mask in seen} == {BUDGET}
    seen.clear()
    weights = fed.server.parameters.detach().clone()
    report = federated_round(2, fed)
    masks = sorted((mask.mask for *_, mask in seen), key=lambda mask: int(mask.sum()))
    assert [sum(layer_counts(mask, fed.masks.entries)) for mask in masks] == [1331, 1997, BUDGET, BUDGET]
    for smaller, larger in itertools.pairwise(masks):
        assert (larger | ~smaller).all()
    half = masks[0][: fed.masks.entries[0].end] & masks[-1][: fed.masks.entries[0].end]
    assert weights[: len(half)][half].abs().mean() > weights[: len(half)][masks[-1][: len(half)]].abs().mean()
    dense = fed.masks.total - PRUNABLE
    sent = [dense + 1331, dense + 1997, dense + BUDGET, dense + BUDGET]
    assert report["uplink_bytes"] == sum(HEADER_NBYTES + 4 * count for count in sent)
    assert report["mask_mismatch"] > 0.1


@pytest.mark.parametrize("growth", ["random", "gradient"])
def test_memory_outside_a_clients_mask_is_dropped_and_counted(growth: str, monkeypatch: pytest.MonkeyPatch) -> None:
    used = config(dataclasses.replace(BASE, compression=TOPK), growth=growth)
    used = dataclasses.replace(used, clients=dataclasses.replace(BASE.clients, per_round=None))
    fed = begin(World(), used)
    assert isinstance(fed.masks, Masks)
    stale = []
    plain = LocalTrainer.train

    def look_and_train(self: LocalTrainer, *arguments: Any) -> ClientResult:
        state, mask = arguments[5:7]
        stale.append(int(state["residual"][~mask.mask].count_nonzero()))  # nothing comes back when weights regrow
        return plain(self, *arguments)

    monkeypatch.setattr(LocalTrainer, "train", look_and_train)
    reports = [federated_round(round_, fed) for round_ in (1, 2, 3)]
    assert max(stale) == 0
    assert [row["dropped_residuals"] > 0 for row in reports] == [False, True, True]
    for state in fed.clients.states.clients.values():
        assert int(state["residual"].count_nonzero()) <= BUDGET + fed.server.parameters.numel() - PRUNABLE


def test_a_cohort_of_one_small_budget_leaves_the_rest_of_the_consensus_as_the_others_would() -> None:
    for update_mode in ("mean", "masked_mean"):
        alone = single(play, config(method="spdst", hetero=((1.0, 0.5),), update_mode=update_mode))[0]
        alike = ((0.5, 0.5), (0.5, 0.4999999))
        assert torch.equal(alone, single(play, config(method="spdst", hetero=alike, update_mode=update_mode))[0])


def test_nst_begins_with_one_mask_and_sends_the_changes_of_each_client_s_own() -> None:
    used = config(dataclasses.replace(BASE, clients=dataclasses.replace(BASE.clients, per_round=None)), method="nst")
    fed = set_up_federation(used, World())
    row = begin_masks(fed, QUIET)
    assert isinstance(fed.masks, Masks)
    assert row["active_weights"] == BUDGET
    assert not fed.server.parameters.detach()[~fed.masks.mask].any()
    reports = [federated_round(round_, fed) for round_ in (1, 2)]
    active = 4 * (BUDGET + fed.masks.total - PRUNABLE)
    for report in reports:
        assert report["downlink_bytes"] == 10 * active  # both sides hold the client's mask
        assert report["uplink_bytes"] == 10 * (HEADER_NBYTES + active) + report["mask_bytes"]
        assert report["mask_bytes"] < 0.15 * report["uplink_bytes"]
    assert reports[1]["mask_mismatch"] > reports[0]["mask_mismatch"]


def test_what_jmwst_sends_is_what_its_codecs_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = spy(monkeypatch)
    used = config(r_int=2)
    fed = begin(World(), used)
    assert isinstance(fed.masks, Masks)
    total = fed.masks.total
    for round_ in (1, 2, 3):
        seen.clear()
        known = fed.masks.mask.clone()
        report = federated_round(round_, fed)
        values = 4 * int(known.sum())
        if round_ == 2:  # frozen: the values alone, summed before the wire
            assert report["uplink_bytes"] == 4 * values
            assert report["mask_bytes"] == 0
            continue
        changes = [
            change_nbytes(int(known.sum()), total - int(known.sum()), int((known & ~m).sum()), int((m & ~known).sum()))
            for m in (result.mask for result, *_ in seen)
            if m is not None
        ]
        assert len(changes) == 4
        assert report["mask_bytes"] == sum(changes) + 4 * HEADER
        assert report["uplink_bytes"] == 4 * (HEADER_NBYTES + values) + report["mask_bytes"]


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


def test_resnet18_at_a_twentieth_sends_a_nineteen_and_a_half_of_dense() -> None:
    used = Config(
        rounds=1,
        data=DataConfig(name="synthetic", synthetic=SyntheticConfig(examples=8, test_examples=4, shape=(3, 32, 32))),
        model=ModelConfig(name="resnet18"),
        clients=ClientsConfig(num=2, per_round=2, batch_size=2, lr=0.01, weighting="uniform"),
        compression=CompressionConfig(sparsifier="dense"),
        sparse_training=SparseTrainingConfig(method="spdst", density=0.05, init_frac=0.5, init_epochs=1),
    )
    for method in ("spdst", "jmwst"):
        *_, (_, report) = single(play, config(used, method=method))
        ratio = report["dense_bytes"] / (report["uplink_bytes"] - report["mask_bytes"])
        assert ratio == pytest.approx(19.5, rel=0.02)
        assert report["active_weights"] == 557_962
        assert report["mask_bytes"] < 0.06 * report["uplink_bytes"]
        assert (report["mask_bytes"] > 0) == (method == "jmwst")


def checkpointed(directory: Path, used: Config, **settings: Any) -> Path:
    """The directory of a finished run with a checkpoint in every round."""
    own = dataclasses.replace(
        used, output_dir=str(directory), checkpoint=CheckpointConfig(every=1, **settings),
        engine=dataclasses.replace(used.engine, threads=1, device="cpu"),
    )  # fmt: skip
    train(own, Launch(), QUIET)
    return directory


def of_rank_0(directory: Path, round_: int) -> dict[str, Any]:
    path = directory / "checkpoints" / f"round-{round_:08d}" / "rank-00000.pt"
    return dict(torch.load(path, weights_only=True))


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


def test_checkpoints_and_exports_are_zero_outside_the_mask(tmp_path: Path) -> None:
    used = dataclasses.replace(BASE, compression=TOPK, server=ServerConfig(momentum=0.5))
    directory = checkpointed(tmp_path / "run", used)
    for round_ in (2, 3):
        saved = of_rank_0(directory, round_)
        outside = ~saved["server"]["masks"]["mask"]
        assert not saved["server"]["parameters"][outside].any()
        assert not saved["server"]["optimizer"]["state"][0]["momentum_buffer"][outside].any()
    for stem in ("model", "best"):
        weights = load_file(directory / f"{stem}.safetensors")
        masks = load_file(directory / f"{stem}.masks.safetensors")
        assert sorted(masks) == ["3.weight_mask", "7.weight_mask"]
        for name, mask in masks.items():
            assert not weights[name.removesuffix("_mask")][mask == 0].any()
        assert sum(int(mask.sum()) for mask in masks.values()) == BUDGET


def test_exported_masks_are_those_of_nn_utils_prune(tmp_path: Path) -> None:
    directory = checkpointed(tmp_path / "run", dataclasses.replace(BASE, rounds=1))
    weights, masks = load_file(directory / "model.safetensors"), load_file(directory / "model.masks.safetensors")
    model = build("cnn", "group", (1, 8, 8), 4, 0, CLASSIFICATION)
    model.load_state_dict(weights)  # a plain state_dict, with zeros
    pruned = build("cnn", "group", (1, 8, 8), 4, 1, CLASSIFICATION)
    for name in masks:
        prune.identity(pruned.get_submodule(name.split(".")[0]), "weight")
    renamed = {f"{key}_orig" if f"{key}_mask" in masks else key: value for key, value in weights.items()}
    pruned.load_state_dict(renamed | masks)
    inputs = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(inputs), pruned(inputs))


def test_masks_of_other_settings_are_not_taken_over(tmp_path: Path) -> None:
    first = checkpointed(tmp_path / "first", config(dataclasses.replace(BASE, rounds=1), method="spdst"))
    for settings in ({"method": "spdst", "density": 0.3}, {"method": "nst"}, {"method": "spdst", "exclude": ("7.*",)}):
        with pytest.raises(ValueError, match=r"^checkpoint\.resume: the masks in the checkpoint have another"):
            checkpointed(tmp_path / "other", config(**settings), resume=str(first))
    hetero = checkpointed(tmp_path / "hetero", config(method="spdst", hetero=HETERO), resume=str(first))
    assert (hetero / "best.safetensors").exists()
    assert (hetero / "best.masks.safetensors").exists()


def test_an_interrupted_sparse_run_cannot_go_on_as_a_dense_one_in_its_place(tmp_path: Path) -> None:
    directory = checkpointed(tmp_path / "run", dataclasses.replace(BASE, rounds=1))
    with pytest.raises(ValueError, match=r"sparse_training\.method"):
        checkpointed(directory, config(dataclasses.replace(BASE, rounds=1), method="dense"))
    assert load_config(directory / "config.yaml").sparse_training == BASE.sparse_training


def test_a_sparse_run_may_begin_where_a_dense_one_ended(tmp_path: Path) -> None:
    dense = checkpointed(tmp_path / "dense", config(dataclasses.replace(BASE, rounds=1), method="dense"))
    sparse = checkpointed(tmp_path / "sparse", config(method="spdst", hetero=HETERO), resume=str(dense))
    rows = [json.loads(line) for line in (sparse / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["active_weights"] == BUDGET
    begun = rows[1]  # the dense run's last round, and stage 1 after it
    assert begun["stage_one"]["densities"] == pytest.approx(list(begun["layer_densities"].values()))
    before = json.loads((dense / "metrics.jsonl").read_text().splitlines()[1])
    assert begun["uplink_bytes"] == before["uplink_bytes"] + 2 * 4 * 2
    assert begun["clients"] == before["clients"]


def test_clients_that_diverge_in_stage_one_or_in_a_round_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    fed = set_up_federation(BASE, World())
    inputs = fed.clients.trainer.source.inputs.float()
    for client in range(10):
        inputs[fed.clients.partition[client]] = float("nan")
    fed.clients.trainer.source.inputs = inputs
    with pytest.raises(DivergedError, match="stage 1: the losses or deltas of all its clients are not finite"):
        begin_masks(fed, QUIET)
    for method in ("nst", "jmwst"):
        used = config(method=method)
        fed = begin(World(), used)
        assert isinstance(fed.masks, Masks)
        cohort = single_cohort(used)
        inputs = fed.clients.trainer.source.inputs.float()
        inputs[fed.clients.partition[cohort[0]]] = float("nan")
        fed.clients.trainer.source.inputs = inputs
        report = federated_round(1, fed)
        assert report["rejected_clients"] == 1
        assert fed.server.parameters.isfinite().all()
        if method == "nst":
            assert cohort[0] not in fed.masks.state_dict()["personal"]  # it keeps the mask that it had
            assert set(cohort[1:]) <= set(fed.masks.state_dict()["personal"])


def single_cohort(used: Config) -> list[int]:
    from flare_dist.server.server import sample_cohort

    return sample_cohort(used.seed, 1, used.clients.num, used.clients.cohort_size)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"mode": "gradient"},
            "sparse_training.method: only federated clients train with masks, got jmwst with mode=gradient",
        ),
        ({"compression": CompressionConfig(error_feedback="ef21")}, "ef21's estimates do not follow masks"),
        (
            {"compression": CompressionConfig(sparsifier="dense", downlink="changed")},
            "compression.downlink: active weights of a mask are sent in float32, got changed with sparse_"
            "training.method=jmwst",
        ),
    ],
)
def test_what_does_not_go_with_masks_is_said_in_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        dataclasses.replace(BASE, **settings)
    assert "\n" not in str(error.value)


def test_logs_and_the_plot_show_the_density_of_every_layer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = checkpointed(tmp_path / "run", BASE)
    events = EventAccumulator(str(directory)).Reload()
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    for layer in ("3.weight", "7.weight"):
        logged = [event.value for event in events.Scalars(f"density/{layer}")]
        assert logged == pytest.approx([row["layer_densities"][layer] for row in rows])
    assert [event.value for event in events.Scalars("masks/mask_mismatch")][1:] == pytest.approx(
        [row["mask_mismatch"] for row in rows[1:]]
    )
    assert [event.value for event in events.Scalars("bytes/mask")][1:] == [row["mask_bytes"] for row in rows[1:]]
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["uplink_bytes"] == sum(row["uplink_bytes"] for row in rows)  # stage 1 among them
    assert main(["densities", str(directory)]) == 0
    shown = capsys.readouterr().out
    assert "3.weight" in shown
    assert f"{rows[-1]['layer_densities']['7.weight']:.4f}" in shown
    assert (directory / "densities.png").stat().st_size > 10_000
    assert totals(read_run(directory, {}), [], "ranks", None).rounds == 3  # stage 1 is none
    assert main(["densities", str(tmp_path)]) == 2


def test_stage_one_says_what_it_found(capsys: pytest.CaptureFixture[str]) -> None:
    fed = set_up_federation(BASE, World())
    begin_masks(fed, Console(width=120))
    shown = capsys.readouterr().out
    assert "stage 1: density of each layer" in shown
    assert "3.weight" in shown
    assert "12,800" in shown


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", ["nst", "spdst", "jmwst", "feddst", "prunefl"])
def test_masks_on_a_gpu(method: str) -> None:
    for compression in (BASE.compression, TOPK):
        used = config(dataclasses.replace(BASE, compression=compression), method=method, growth="gradient")
        parameters, mask, _, reports = play(World(device=torch.device("cuda")), used)
        assert method == "nst" or not parameters[~mask].any()
        assert parameters.isfinite().all()
        assert method == "nst" or reports[-1]["active_weights"] == BUDGET
