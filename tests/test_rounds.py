"""Federated rounds on real ranks against the oracle, and the laws that must always hold."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flare_dist.algorithms.fedprox import FedProxConfig
from flare_dist.algorithms.flare import FlareConfig
from flare_dist.comm import collectives
from flare_dist.comm.message import HEADER_NBYTES
from flare_dist.comm.world import World
from flare_dist.compression.config import CompressionConfig
from flare_dist.config.config import Config
from flare_dist.models.config import ModelConfig
from flare_dist.rounds.centralised import Centralised, centralised_round
from flare_dist.rounds.diverged import DivergedError
from flare_dist.rounds.setup import set_up
from flare_dist.server.config import ServerConfig
from tests.helpers.rounds import DATA, DENSE, SPARSE, flat, play
from tests.oracle import train_in_one_process
from tests.ranks import run_ranks, single


@pytest.fixture(scope="module")
def oracle() -> Tensor:
    torch.set_num_threads(1)
    return flat(train_in_one_process(SPARSE))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_sparse_rounds_equal_the_oracle_bitwise_on_any_number_of_ranks(size: int, oracle: Tensor) -> None:
    results = [single(play, SPARSE)] if size == 1 else run_ranks(play, size, SPARSE)
    for parameters, *_ in results:
        assert torch.equal(parameters, oracle)


FLARE = dataclasses.replace(
    SPARSE.clients, objective="flare", local_epochs=2, flare=FlareConfig(tau=0.3, decay=1.1, steps=3)
)
METHODS = {
    "flare": dataclasses.replace(SPARSE, rounds=5, clients=FLARE),
    "flare throughout": dataclasses.replace(
        SPARSE, rounds=5, clients=dataclasses.replace(FLARE, flare=FlareConfig(tau=0.3, percentile=80, steps=None))
    ),
    "ef21": dataclasses.replace(SPARSE, rounds=5, compression=CompressionConfig(density=0.02, error_feedback="ef21")),
    "dgc": dataclasses.replace(SPARSE, rounds=5, compression=CompressionConfig(density=0.02, error_feedback="dgc")),
}


@pytest.mark.parametrize("method", METHODS)
def test_methods_equal_the_oracle_bitwise_with_clients_absent(method: str) -> None:
    torch.set_num_threads(1)
    expected = flat(train_in_one_process(METHODS[method]))
    for size in (1, 2, 3):
        results = [single(play, METHODS[method])] if size == 1 else run_ranks(play, size, METHODS[method])
        for parameters, *_ in results:
            assert torch.equal(parameters, expected)
    assert not torch.equal(expected, flat(train_in_one_process(dataclasses.replace(SPARSE, rounds=5))))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_dense_rounds_are_fedavg_and_alike_on_every_rank(size: int) -> None:
    torch.set_num_threads(1)
    expected = flat(train_in_one_process(DENSE))
    results = [single(play, DENSE)] if size == 1 else run_ranks(play, size, DENSE)
    for parameters, *_ in results:
        torch.testing.assert_close(parameters, expected, rtol=1e-4, atol=1e-6)
        assert torch.equal(parameters, results[0][0])


def test_density_one_of_any_sparsifier_is_dense() -> None:
    dense = single(play, DENSE)[0]
    for name in ("topk", "randk"):
        config = dataclasses.replace(DENSE, compression=CompressionConfig(sparsifier=name, density=1.0))
        assert torch.equal(single(play, config)[0], dense)


def test_zero_proximal_weight_is_plain_training() -> None:
    clients = dataclasses.replace(SPARSE.clients, objective="fedprox", fedprox=FedProxConfig(mu=0.0))
    assert torch.equal(single(play, dataclasses.replace(SPARSE, clients=clients))[0], single(play, SPARSE)[0])
    pulled = dataclasses.replace(clients, fedprox=FedProxConfig(mu=1.0))
    assert not torch.equal(single(play, dataclasses.replace(SPARSE, clients=pulled))[0], single(play, SPARSE)[0])


def test_stateful_server_steps_on_rank_0_and_every_rank_receives_the_result() -> None:
    config = dataclasses.replace(SPARSE, server=ServerConfig(momentum=0.9))
    alone = single(play, config)[0]
    for parameters, *_ in run_ranks(play, 2, config):
        assert torch.equal(parameters, alone)
    assert not torch.equal(alone, single(play, SPARSE)[0])


@pytest.mark.parametrize("sparsifier", ["randk", "threshold"])
@pytest.mark.parametrize("scope", ["tensor", "global"])
def test_other_sparsifiers_do_not_depend_on_the_number_of_ranks(sparsifier: str, scope: str) -> None:
    compression = CompressionConfig(sparsifier=sparsifier, density=0.05, scope=scope, threshold=0.02)
    config = dataclasses.replace(SPARSE, compression=compression)
    alone, _, _, reports = single(play, config)
    ranks = run_ranks(play, 2, config)
    assert all(torch.equal(parameters, alone) for parameters, *_ in ranks)
    assert [report["kept"] for report in ranks[0][3]] == [report["kept"] for report in reports]
    assert all(0 < report["kept"] <= 0.06 * report["total"] for report in reports)


def test_residuals_live_at_home_and_nowhere_else() -> None:
    alone = single(play, SPARSE)[2]
    ranks = run_ranks(play, 2, SPARSE)
    for rank, (_, _, states, _) in enumerate(ranks):
        assert all(client % 2 == rank for client in states)
        for client, state in states.items():
            assert torch.equal(state["residual"], alone[client]["residual"])
    assert set(alone) == {client for _, _, states, _ in ranks for client in states}


@pytest.mark.parametrize("config", [SPARSE, DENSE], ids=["sparse", "dense"])
def test_clients_that_are_not_finite_are_left_out_and_keep_their_residual(config: Config) -> None:
    torch.set_num_threads(1)
    expected = flat(train_in_one_process(config, reject=frozenset({1, 4})))
    for parameters, _, states, reports in run_ranks(play, 2, config, (1, 4)):
        torch.testing.assert_close(parameters, expected, rtol=1e-4, atol=1e-6)
        rejected = [report["rejected_clients"] for report in reports]
        assert sum(rejected) > 0
        for report in reports:
            assert report["clients"] == 4
            assert math.isfinite(report["train_loss"])
        for client in {1, 4} & set(states) if config is SPARSE else ():
            assert not states[client]["residual"].any()


def fails(world: World, config: Config, poisoned: tuple[int, ...]) -> str:
    with pytest.raises(DivergedError) as caught:
        play(world, config, poisoned)
    return str(caught.value)


@pytest.mark.parametrize("config", [SPARSE, DENSE], ids=["sparse", "dense"])
def test_all_ranks_stop_together_when_every_client_is_rejected(config: Config) -> None:
    everyone = dataclasses.replace(config, clients=dataclasses.replace(config.clients, per_round=None))
    messages = run_ranks(fails, 2, everyone, (0, 1, 2, 3, 4))
    assert messages[0] == messages[1]
    assert messages[0].startswith("round 1: ")
    assert "(0, 1, 2, 3, 4)" in messages[0]


def wire(world: World, config: Config) -> tuple[list[dict[str, Any]], int]:
    """The reports of a run, and the bytes that the gathers and reductions were really given, over all rounds."""
    moved = 0
    gather = collectives.all_gather_flat
    reduce = torch.distributed.all_reduce

    def counted_gather(output: Tensor, local: Tensor, **options: Any) -> Any:
        nonlocal moved
        moved += world.size * (world.size - 1) * local.numel() * local.element_size()
        return gather(output, local, **options)

    def counted_reduce(tensor: Tensor, *operation: Any) -> None:
        nonlocal moved
        if not operation:  # a maximum is a control message
            moved += 2 * (world.size - 1) * tensor.numel() * tensor.element_size()
        reduce(tensor, *operation)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collectives, "all_gather_flat", counted_gather)
        patch.setattr(torch.distributed, "all_reduce", counted_reduce)
        return play(world, config)[3], moved


@pytest.mark.parametrize("config", [SPARSE, DENSE], ids=["sparse", "dense"])
def test_ledger_counts_the_buffers_that_moved(config: Config) -> None:
    reports, moved = run_ranks(wire, 2, config)[0]
    assert sum(report["wire_bytes"] for report in reports) == moved > 0
    for report in reports:
        in_turn = report["compute_seconds"] + report["select_seconds"]
        assert 0 < report["slowest_client_seconds"] <= in_turn
        assert report["dense_bytes"] == report["downlink_bytes"] == 4 * report["total"]
        header = 0 if config is DENSE else HEADER_NBYTES * report["clients"]
        if config is DENSE:
            assert report["uplink_bytes"] == 4 * report["kept"]
        else:
            assert 4 * report["kept"] < report["uplink_bytes"] - header < 8 * report["kept"]
        assert report["uplink_bytes"] <= report["wire_bytes"] or config is DENSE


def test_batchnorm_buffers_travel_and_are_averaged() -> None:
    config = dataclasses.replace(
        SPARSE, rounds=1, model=ModelConfig(name="tests.helpers.rounds:norm_net", norm="batch"), data=DATA
    )
    ranks = run_ranks(play, 2, config)
    alone = single(play, config)
    for parameters, buffers, _, reports in ranks:
        assert torch.equal(parameters, alone[0])
        assert torch.equal(buffers, alone[1])
        assert reports[0]["buffer_bytes"] == 4 * buffers.numel() * reports[0]["clients"]
    assert alone[1].numel() == 8
    assert not torch.equal(alone[1], set_up(config, World()).server.buffers)


def test_centralised_rounds_are_plain_training_on_the_pooled_data(tmp_path: Path) -> None:
    config = dataclasses.replace(DENSE, mode="centralised")
    run = set_up(config, World())
    assert isinstance(run, Centralised)
    reports = [centralised_round(round_, run) for round_ in range(1, 4)]

    federated = dataclasses.replace(DENSE, rounds=1, clients=dataclasses.replace(DENSE.clients, num=1, per_round=1))
    data = dataclasses.replace(DATA, partition="iid")
    first = flat(train_in_one_process(dataclasses.replace(federated, data=data)))
    again = set_up(config, World())
    assert isinstance(again, Centralised)
    centralised_round(1, again)
    torch.testing.assert_close(again.server.parameters.detach(), first, rtol=1e-5, atol=1e-7)
    assert reports[-1]["train_loss"] < reports[0]["train_loss"]
    assert reports[-1]["uplink_bytes"] == 0
    assert run.trainer.model.optimizer.state  # momentum is kept from round to round
