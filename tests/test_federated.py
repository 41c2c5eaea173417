"""Federated rounds on real ranks against the oracle, and the laws that must always hold."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from flare_dist.algorithms.fedprox import FedProxConfig
from flare_dist.algorithms.flare import FlareConfig
from flare_dist.compression.config import CompressionConfig
from flare_dist.server.config import ServerConfig
from tests.helpers.rounds import DENSE, SPARSE, flat, play
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
