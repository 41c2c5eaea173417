"""Federations of seconds, and how to play them."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from flare_dist.clients.config import ClientsConfig
from flare_dist.comm.world import World
from flare_dist.compression.config import CompressionConfig
from flare_dist.config.config import Config
from flare_dist.data.config import DataConfig, SyntheticConfig
from flare_dist.rounds.build_run import set_up_federation
from flare_dist.rounds.federated import federated_round
from tests.helpers.batches import resident

DATA = DataConfig(
    name="synthetic",
    partition="quantity",
    alpha=3.0,
    synthetic=SyntheticConfig(examples=150, test_examples=20, shape=(1, 5, 5), classes=3),
)
SPARSE = Config(
    seed=3,
    rounds=3,
    data=DATA,
    clients=ClientsConfig(num=5, per_round=4, batch_size=8, lr=0.05, momentum=0.5),
    compression=CompressionConfig(density=0.02),
)
DENSE = dataclasses.replace(SPARSE, compression=CompressionConfig(sparsifier="dense"))


def play(world: World, config: Config, poisoned: tuple[int, ...] = ()) -> tuple[Tensor, Tensor, dict[int, Any], list]:
    """Play all rounds of `config`; returns (parameters, buffers, memory of the clients homed here, rows)."""
    fed = set_up_federation(config, world)
    for client in poisoned:  # inputs that are not finite make the loss NaN
        examples = fed.clients.partition[client]
        inputs = resident(fed.clients.trainer.source).inputs.float()
        inputs[examples] = float("nan")
        resident(fed.clients.trainer.source).inputs = inputs
    reports = [federated_round(round_, fed) for round_ in range(1, config.rounds + 1)]
    return fed.server.parameters.detach(), fed.server.buffers, dict(fed.clients.states.clients), reports


def flat(model: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def norm_net(input_shape: tuple[int, int, int], num_classes: int) -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Conv2d(input_shape[0], 4, 3),
        torch.nn.BatchNorm2d(4),
        torch.nn.Flatten(),
        torch.nn.Linear(4 * (input_shape[1] - 2) * (input_shape[2] - 2), num_classes),
    )
