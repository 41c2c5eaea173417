"""Configurations of methods, and laws that every method with a memory keeps."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from flare_dist.algorithms.feddyn import FedDynConfig
from flare_dist.clients.client import ClientResult, LocalTrainer
from flare_dist.comm.world import World
from flare_dist.config.config import Config
from flare_dist.rounds.build_run import set_up_federation
from flare_dist.rounds.federated import federated_round
from flare_dist.server.config import ServerConfig

ALPHA = 0.5
DYN: dict[str, Any] = {"objective": "feddyn", "feddyn": FedDynConfig(ALPHA), "weighting": "uniform", "momentum": 0.0}


def of_clients(config: Config, **settings: Any) -> Config:
    return dataclasses.replace(config, clients=dataclasses.replace(config.clients, **settings))


def nova(config: Config, **settings: Any) -> Config:
    return dataclasses.replace(of_clients(config, **settings), server=ServerConfig(aggregator="fednova"))


def spy(monkeypatch: pytest.MonkeyPatch) -> dict[int, Tensor]:
    """Record the model delta of each client of a round."""
    seen: dict[int, Tensor] = {}
    plain = LocalTrainer.train

    def train_and_tell(self: LocalTrainer, *arguments: Any) -> ClientResult:
        result = plain(self, *arguments)
        seen[result.client] = result.model_delta.clone()
        return result

    monkeypatch.setattr(LocalTrainer, "train", train_and_tell)
    return seen


def check_that_it_goes_on(used: Config) -> None:
    """Check that a round from what a checkpoint keeps of server and clients has the bits of one without the break."""
    straight = set_up_federation(used, World())
    federated_round(1, straight)
    again = set_up_federation(used, World())
    again.server.load_state_dict(straight.server.state_dict())
    for client, state in straight.clients.states.clients.items():
        again.clients.states.load(client, {name: vector.clone() for name, vector in state.items()})
    for fed in (straight, again):
        federated_round(2, fed)
    assert torch.equal(straight.server.parameters, again.server.parameters)
