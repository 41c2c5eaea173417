"""Whole rounds of sparse models: the same masks on any number of ranks, and the bytes that clients send."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from flare_dist.clients.client import ClientResult, LocalTrainer
from flare_dist.clients.config import ClientsConfig
from flare_dist.comm.message import HEADER_NBYTES
from flare_dist.comm.world import World
from flare_dist.compression.config import CompressionConfig
from flare_dist.compression.masked import HEADER, change_nbytes
from flare_dist.config.config import Config
from flare_dist.data.config import DataConfig, SyntheticConfig
from flare_dist.models.config import ModelConfig
from flare_dist.rounds.build_run import set_up_federation
from flare_dist.rounds.federated import federated_round
from flare_dist.rounds.stage_one import begin_masks
from flare_dist.server.config import ServerConfig
from flare_dist.sparse_training.config import SparseTrainingConfig
from flare_dist.sparse_training.consensus import Masks
from flare_dist.sparse_training.methods import METHODS
from tests.helpers.masks import BASE, BUDGET, HETERO, PRUNABLE, QUIET, TOPK, begin, config, play, spy
from tests.ranks import run_ranks, single


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


def timeless(row: dict[str, Any]) -> dict[str, Any]:
    """Leave out what clocks measure, and losses, which are alike to rounding."""
    participants = [line | {"seconds": None, "train_loss": None} for line in row.get("participants", [])]
    return {k: v for k, v in row.items() if not k.endswith("_seconds")} | {"participants": participants}


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
    for row, other in zip(map(timeless, reports), map(timeless, ranks[0][3])):
        for key in row.keys() - {"wire_bytes", "collectives", "ranks", "train_loss"}:
            assert other[key] == row[key], key


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", ["nst", "spdst", "jmwst", "feddst", "prunefl"])
def test_masks_on_a_gpu(method: str) -> None:
    for compression in (BASE.compression, TOPK):
        used = config(dataclasses.replace(BASE, compression=compression), method=method, growth="gradient")
        parameters, mask, _, reports = play(World(device=torch.device("cuda")), used)
        assert method == "nst" or not parameters[~mask].any()
        assert parameters.isfinite().all()
        assert method == "nst" or reports[-1]["active_weights"] == BUDGET
