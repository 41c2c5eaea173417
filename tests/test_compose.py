"""Records of methods: what composing them comes to, and where their vectors go."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flare_dist.algorithms.algorithm import (
    FEDAVG,
    Algorithm,
    LocalContext,
    LocalWork,
    Penalty,
    Senders,
    Trained,
    Vectors,
)
from flare_dist.algorithms.compose import compose
from flare_dist.algorithms.feddyn import FedDynConfig, feddyn
from flare_dist.algorithms.fednova import fednova
from flare_dist.algorithms.fedprox import FedProxConfig, fedprox
from flare_dist.algorithms.methods import AGGREGATORS, OBJECTIVES, algorithm_of
from flare_dist.algorithms.scaffold import scaffold
from flare_dist.clients.config import ClientsConfig
from flare_dist.layout import ParameterLayout

WORK = LocalWork(1, 4, 0.1, 0.0)


def context(**memory: Tensor) -> LocalContext:
    start = torch.zeros(3)
    return LocalContext(ParameterLayout.of([("a", start)]), 1, 0.1, 0.0, start, memory, {"control": torch.ones(3)})


def test_fedavg_adds_nothing_to_what_it_is_composed_with() -> None:
    for algorithm in (FEDAVG, scaffold(), fedprox(FedProxConfig())):
        assert compose(FEDAVG, algorithm) is compose(algorithm, FEDAVG) is algorithm
    assert compose() is compose(FEDAVG, FEDAVG) is FEDAVG


@pytest.mark.parametrize("aggregator", AGGREGATORS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_pair_of_names_composes_and_sends_the_delta_first(objective: str, aggregator: str) -> None:
    alone = algorithm_of(ClientsConfig(objective=objective, weighting="uniform"))
    both = algorithm_of(ClientsConfig(objective=objective, weighting="uniform"), aggregator)
    assert (both.memory, both.server, both.sends) == (alone.memory, alone.server, alone.sends)
    assert both.sends[0] == "delta"


def test_records_are_applied_in_their_order() -> None:
    """SCAFFOLD's change is of the whole delta, which FedNova divides; FedProx tells FedNova how steps shrink."""
    both = compose(scaffold(), fedprox(FedProxConfig(2.0)), fednova())
    work = both.brief(WORK)
    assert work.gradients == pytest.approx(1 + 0.8 + 0.8**2 + 0.8**3)
    delta, memory = torch.tensor([4.0, 8.0, -4.0]), {"control": torch.zeros(3)}
    payloads = both.before_wire(Trained(delta.clone(), work), memory, {"control": torch.ones(3)})
    torch.testing.assert_close(payloads["control"], -(1 + delta / 0.4))
    torch.testing.assert_close(memory["control"], payloads["control"])
    torch.testing.assert_close(payloads["delta"], delta / work.gradients)
    mean = payloads["delta"].clone()
    both.after_wire(mean, {}, Senders({0: work, 1: WORK}, {0: 0.5}, 2))  # client 1 was rejected
    torch.testing.assert_close(mean, delta)


def test_penalties_add_up() -> None:
    both = compose(scaffold(), fedprox(FedProxConfig(2.0))).penalty(context(control=torch.full((3,), 0.25)))
    assert both is not None
    gradient = torch.zeros(3)
    both.add_gradient(gradient, torch.full((3,), 0.5))
    assert gradient.tolist() == [0.75 + 1.0] * 3
    alone = compose(scaffold(), fedprox(FedProxConfig(0.0))).penalty(context(control=torch.zeros(3)))
    assert alone is not None
    assert compose(fedprox(FedProxConfig(0.0)), fednova()).penalty(context()) is None


def test_a_record_begins_with_the_delta_that_the_one_before_it_sends() -> None:
    def doubled(trained: Trained, memory: Vectors, server: Vectors) -> Vectors:
        return {"delta": trained.delta * 2}

    def halved(trained: Trained, memory: Vectors, server: Vectors) -> Vectors:
        return {"delta": trained.delta.div_(2)}

    both = compose(Algorithm(before_wire=doubled), Algorithm(before_wire=halved), Algorithm(brief=lambda work: work))
    sent = both.before_wire(Trained(torch.ones(3), LocalWork(1, 1, 0.1, 0.0)), {}, {})
    assert sent["delta"].tolist() == [1.0, 1.0, 1.0]


def test_what_does_not_compose_is_refused() -> None:
    with pytest.raises(ValueError, match="two of them use the name 'control'"):
        compose(scaffold(), scaffold())
    short = Algorithm(penalty=lambda context: Penalty(lambda gradient, local: None, steps=1))
    with pytest.raises(ValueError, match="a penalty for some of the steps goes with no other"):
        compose(short, fedprox(FedProxConfig())).penalty(context())


def test_what_clients_are_told_has_the_name_of_a_payload() -> None:
    assert (scaffold().told, scaffold().remembers_alone) == (("control",), False)
    assert (feddyn(FedDynConfig()).told, feddyn(FedDynConfig()).remembers_alone) == ((), True)
    assert compose(feddyn(FedDynConfig()), scaffold()).told == ("control",)
