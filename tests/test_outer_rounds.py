"""Rounds with one client on each rank are outer steps: the same settings, the same batches, the same weights."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

import flare_dist
from flare_dist.clients.muon import MuonConfig
from flare_dist.comm.world import World
from flare_dist.config.config import Config
from flare_dist.rounds.build_run import set_up_federation
from flare_dist.rounds.federated import federated_round
from flare_dist.rounds.federation import Federation
from flare_dist.server.config import ServerConfig
from tests.helpers.rounds import DENSE, flat
from tests.ranks import run_ranks

LOCAL_STEPS = 3
PLAIN = dataclasses.replace(
    DENSE.clients, num=2, per_round=None, local_steps=LOCAL_STEPS, momentum=0.0, weighting="uniform"
)
DILOCO = dataclasses.replace(DENSE, rounds=4, clients=PLAIN, server=ServerConfig(lr=0.7, momentum=0.9, nesterov=True))
MakeInner = Callable[[nn.Module], list[Optimizer]]


def sgd(model: nn.Module) -> list[Optimizer]:
    return [torch.optim.SGD(model.parameters(), lr=PLAIN.lr)]


def adamw(model: nn.Module) -> list[Optimizer]:
    return [torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)]


def muon(model: nn.Module) -> list[Optimizer]:
    *hidden, _ = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if all(p is not one for one in hidden)]
    rest = torch.optim.AdamW(others, lr=0.003, betas=(0.9, 0.95), weight_decay=0.1)
    return [torch.optim.Muon(hidden, lr=0.01, weight_decay=0.1), rest]


def with_clients(**settings: Any) -> Config:
    return dataclasses.replace(DILOCO, clients=dataclasses.replace(PLAIN, **settings))


KEPT = {"lr": 0.01, "weight_decay": 0.1, "keep_optimizer": True}
CASES: dict[str, tuple[Config, MakeInner]] = {
    "sgd": (DILOCO, sgd),
    "adamw": (with_clients(optimizer="adamw", **KEPT), adamw),
}
if hasattr(torch.optim, "Muon"):
    CASES["muon"] = with_clients(optimizer="muon", muon=MuonConfig(adamw_lr=0.003), **KEPT), muon


def train_by_outer_steps(fed: Federation, rank: int, make: MakeInner) -> Tensor:
    """The global weights after as many outer steps as the run has rounds, on the batches of client `rank`."""
    model = copy.deepcopy(fed.model.module).train()
    inner = make(model)
    outer = flare_dist.outer(model, preset="diloco", every=LOCAL_STEPS)
    for round_ in range(1, fed.config.rounds + 1):
        for inputs, labels in fed.clients.trainer._batches(rank, round_, fed.clients.partition[rank]):
            model.zero_grad()
            F.cross_entropy(model(inputs), labels).backward()
            for optimizer in inner:
                optimizer.step()
            outer.step()
    return flat(model).detach()


def train_by_both(world: World) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """The weights at first, those by rounds and those by outer steps, of each case."""
    found = {}
    for name, (config, make) in CASES.items():
        fed = set_up_federation(config, world)
        start = fed.view.clone()
        by_steps = train_by_outer_steps(fed, world.rank, make)
        for round_ in range(1, config.rounds + 1):
            federated_round(round_, fed)
        found[name] = start, fed.view.detach().clone(), by_steps
    return found


@pytest.fixture(scope="module")
def trained() -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    return run_ranks(train_by_both, 2)[0]


@pytest.mark.parametrize("case", CASES)
def test_rounds_of_a_nesterov_server_are_outer_steps(case: str, trained: dict[str, tuple[Tensor, ...]]) -> None:
    start, by_rounds, by_steps = trained[case]
    assert (by_rounds - start).norm() > 0.02 * start.norm()
    torch.testing.assert_close(by_rounds, by_steps, rtol=1e-4, atol=1e-6)
