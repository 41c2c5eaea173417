"""Build the model and the loop of local steps on this rank, from the configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer

from flare_dist.algorithms.algorithm import Algorithm
from flare_dist.clients.client import LocalTrainer
from flare_dist.clients.kept_optimizer import KeptOptimizer
from flare_dist.clients.local_model import LocalModel
from flare_dist.clients.optimizers import find_optimizer, steps_by_name
from flare_dist.comm.world import World
from flare_dist.conditions import keeps_optimizer
from flare_dist.config.config import Config
from flare_dist.data.datasets import DataSplits
from flare_dist.engines.build import build_model

if TYPE_CHECKING:
    from flare_dist.engines.build import EngineModel


def place(config: Config, world: World, data: DataSplits, model: nn.Module) -> EngineModel:
    """Place the model on the device in the precision of the engine, with the clients' optimizer."""
    clients = config.clients
    alone = config.mode != "gradient"

    make = find_optimizer(clients.optimizer, clients.optimizer_options, clients.muon, model)

    def make_optimizer(parameters: list[Any]) -> Optimizer:
        return make(parameters, clients.lr, clients.momentum, clients.weight_decay)

    clipping = clients.gradient_clipping
    smallest = clients.smallest
    by_name = steps_by_name(clients.optimizer)
    return build_model(config.engine, model, world, make_optimizer, clipping, alone, data.task, smallest, by_name)


def build_local_trainer(
    config: Config, world: World, data: DataSplits, local: LocalModel, algorithm: Algorithm
) -> LocalTrainer:
    """Build the loop of local steps over the training data."""
    source = data.batches(data.train, world.device, config.data.augment)
    source.on_batch = world.on_batch
    return LocalTrainer(
        local,
        source,
        config.clients,
        config.rounds,
        config.seed,
        algorithm,
        of_all_shards=world.host.gather,
        kept=KeptOptimizer.of(local) if keeps_optimizer(config) else None,
    )
