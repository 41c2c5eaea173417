"""FedNova: how many gradients a delta is worth, and the step that follows from it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from flare_dist.algorithms.algorithm import LocalWork
from flare_dist.algorithms.fednova import gradients_in
from flare_dist.algorithms.fedprox import FedProxConfig
from flare_dist.algorithms.methods import algorithm_of
from flare_dist.clients.config import ClientsConfig
from flare_dist.comm.world import World
from flare_dist.compression.config import CompressionConfig
from flare_dist.rounds.build_run import set_up_federation
from flare_dist.rounds.federated import federated_round
from flare_dist.sparse_training.config import SparseTrainingConfig
from tests.helpers.methods import DYN, nova, of_clients, spy
from tests.helpers.rounds import DENSE, SPARSE, play
from tests.ranks import run_ranks, single


def test_fednova_works_with_sparse_uplinks_on_any_number_of_ranks() -> None:
    torch.set_num_threads(1)
    used = nova(SPARSE)
    parameters, _, clients, reports = single(play, used)
    assert reports[-1]["kept"] < 0.05 * reports[-1]["total"]
    for other, *_ in run_ranks(play, 2, used):
        assert torch.equal(other, parameters)
    assert all(set(state) == {"residual"} for state in clients.values())


def test_a_delta_is_worth_as_many_gradients_as_its_steps_accumulate() -> None:
    assert gradients_in(LocalWork(1, 7, 0.1, 0.0)) == 7
    assert gradients_in(LocalWork(1, 3, 0.1, 0.5)) == 1 + 1.5 + 1.75
    prox = algorithm_of(ClientsConfig(objective="fedprox", fedprox=FedProxConfig(2.0)), "fednova")
    assert prox.brief(LocalWork(1, 3, 0.1, 0.0)).gradients == pytest.approx(0.8**2 + 0.8 + 1)


def test_fednova_of_equal_steps_is_fedavg_and_of_unequal_ones_its_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    equal = {"local_steps": 3}
    average = single(play, of_clients(DENSE, **equal))[0]
    torch.testing.assert_close(single(play, nova(DENSE, **equal))[0], average, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(single(play, nova(DENSE))[0], single(play, DENSE)[0], atol=1e-4)
    seen, used = spy(monkeypatch), nova(DENSE)
    fed = set_up_federation(used, World())
    before = fed.server.parameters.detach().double().clone()
    federated_round(1, fed)
    examples = {client: len(fed.clients.partition[client]) for client in seen}
    shares = {client: n / sum(examples.values()) for client, n in examples.items()}
    momentum = used.clients.momentum
    norms = {c: gradients_in(LocalWork(1, used.clients.steps_with(n), 0.05, momentum)) for c, n in examples.items()}
    assert len(set(norms.values())) > 1
    effective = sum(shares[c] * norms[c] for c in seen)
    step = sum(shares[c] * seen[c].double() / norms[c] for c in seen)
    expected = before + effective * step
    torch.testing.assert_close(fed.server.parameters.detach().double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nova(DENSE, optimizer="adam", momentum=0.0), "server.aggregator: fednova counts steps of sgd, got"),
        (lambda: nova(DENSE, **DYN), "server.aggregator: fednova does not go with feddyn"),
        (
            lambda: dataclasses.replace(
                nova(DENSE),
                compression=CompressionConfig(sparsifier="dense"),
                sparse_training=SparseTrainingConfig(method="pdst"),
            ),
            "server.aggregator: fednova does not go with sparse models",
        ),
    ],
)
def test_what_does_not_go_with_fednova_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        make()
