"""Sparse models of a few thousand weights, and how to play their rounds."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from flare_dist.clients.client import ClientResult, LocalTrainer
from flare_dist.clients.config import ClientsConfig
from flare_dist.comm.host import Host
from flare_dist.comm.world import World
from flare_dist.compression.config import CompressionConfig
from flare_dist.config.config import Config
from flare_dist.data.config import DataConfig, SyntheticConfig
from flare_dist.layout import Entry
from flare_dist.models.config import ModelConfig
from flare_dist.rounds.build_run import set_up_federation
from flare_dist.rounds.federated import federated_round
from flare_dist.rounds.federation import Federation
from flare_dist.rounds.stage_one import begin_masks
from flare_dist.sparse_training.config import SparseTrainingConfig
from flare_dist.sparse_training.consensus import Masks
from flare_dist.sparse_training.layers import Layers
from flare_dist.sparse_training.local_mask import LocalMask
from flare_dist.sparse_training.masks import random_mask

QUIET = Console(quiet=True)
HETERO = ((0.25, 0.5), (0.25, 0.75), (0.5, 1.0))
BASE = Config(
    seed=1,
    rounds=3,
    data=DataConfig(
        name="synthetic",
        partition="dirichlet",
        synthetic=SyntheticConfig(examples=400, test_examples=20, shape=(1, 8, 8), classes=4),
    ),
    model=ModelConfig(name="cnn"),
    clients=ClientsConfig(num=10, per_round=4, batch_size=8, lr=0.1, momentum=0.5, weighting="uniform"),
    compression=CompressionConfig(sparsifier="dense"),
    sparse_training=SparseTrainingConfig(
        method="jmwst", density=0.2, layers="all", exclude=("0.*",), init_frac=0.2, init_epochs=2
    ),
)
PRUNABLE = 12_800 + 512
BUDGET = 2662  # round(0.2 * PRUNABLE)
TOPK = CompressionConfig(density=0.1)


def config(base: Config = BASE, **settings: Any) -> Config:
    return dataclasses.replace(base, sparse_training=dataclasses.replace(base.sparse_training, **settings))


def begin(world: World, used: Config) -> Federation:
    fed = set_up_federation(used, world)
    begin_masks(fed, QUIET)
    return fed


def play(world: World, used: Config) -> tuple[Tensor, Tensor, dict[int, dict[str, Tensor]], list[dict[str, Any]]]:
    """Play all rounds; returns (parameters, consensus, memory of the clients homed here, rows from the beginning)."""
    fed = set_up_federation(used, world)
    reports = [begin_masks(fed, QUIET)]
    reports += [federated_round(round_, fed) for round_ in range(1, used.rounds + 1)]
    assert isinstance(fed.masks, Masks)
    return fed.server.parameters.detach(), fed.masks.mask, dict(fed.clients.states.clients), reports


def spy(monkeypatch: pytest.MonkeyPatch) -> list[tuple[ClientResult, Tensor, LocalMask]]:
    """Note what every client of the rounds brings back, its local parameters, and its mask."""
    seen = []
    plain = LocalTrainer.train

    def train_and_tell(self: LocalTrainer, *arguments: Any) -> ClientResult:
        result = plain(self, *arguments)
        if arguments[1] > 0:
            copy = dataclasses.replace(result, model_delta=result.model_delta.clone())
            seen.append((copy, self.model.parameters.clone(), arguments[6]))
        return result

    monkeypatch.setattr(LocalTrainer, "train", train_and_tell)
    return seen


ENTRIES = (Entry("a", (60,), 0), Entry("b", (30, 20), 65), Entry("c", (1000,), 665))
TOTAL = 1665
LAYERS = Layers.of(ENTRIES, Host())


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def local_mask(actives: tuple[int, ...] = (20, 100, 100), steps: int = 10, **settings: Any) -> tuple[LocalMask, Tensor]:
    """Make a mask in the middle of its round, and weights under it."""
    config = SparseTrainingConfig(method="jmwst", **settings)
    mask = random_mask(LAYERS, actives, TOTAL, draws(), torch.device("cpu"))
    weights = torch.randn(TOTAL, generator=draws(1)) * mask
    rates = {step: config.prune_rate * (1 - step / steps) for step in range(steps)}
    used = LocalMask(config, LAYERS, mask, sum(actives), rates, draws(2), torch.empty(TOTAL), config.resolved_growth)
    return used, weights


def update(used: LocalMask, weights: Tensor, step: int) -> list[int]:
    growing = used.prune(weights, step)
    weights.mul_(used.factor)
    used.grow(growing)
    return growing
