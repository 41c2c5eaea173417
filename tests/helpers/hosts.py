"""Federations on hosts of several ranks: the global model and the rows of several configurations, in one start."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from flare_dist.comm.world import World
from flare_dist.config.config import Config
from flare_dist.engines.config import EngineConfig
from flare_dist.engines.deepspeed_config import deepspeed_settings
from flare_dist.engines.gathered import whole
from flare_dist.rounds.build_run import set_up_federation
from flare_dist.rounds.federated import federated_round

Played = dict[str, tuple[dict[str, Tensor], list[dict[str, Any]]]]


def with_clients(config: Config, **settings: Any) -> Config:
    return dataclasses.replace(config, clients=dataclasses.replace(config.clients, **settings))


def zero(stage: int, shards: int) -> EngineConfig:
    """DeepSpeed's ZeRO on hosts of so many ranks; at stage 3 some parameters stay whole, and others do not."""
    sections = {"stage": stage, "overlap_comm": False, "reduce_bucket_size": 1000}
    if stage == 3:
        sections["stage3_param_persistence_threshold"] = 10
    own = {"zero_optimization": sections, "zero_allow_untested_optimizer": True, "steps_per_print": 10**9}
    return EngineConfig(name="deepspeed", shards=shards, deepspeed_config=own)


def resolved(config: Config) -> Config:
    """A configuration with DeepSpeed's settings filled in, as a run does it."""
    engine = config.engine
    if engine.name != "deepspeed":
        return config
    clients = config.clients
    settings = deepspeed_settings(engine, clients.batch_size, clients.gradient_clipping, config.mode)
    return dataclasses.replace(config, engine=dataclasses.replace(engine, deepspeed_config=settings))


def play_on(world: World, configs: Mapping[str, Config], engine: EngineConfig) -> Played:
    """The global model and the rows of every configuration, by name."""
    played = {}
    for name, config in configs.items():
        fed = set_up_federation(resolved(dataclasses.replace(config, engine=engine)), world)
        rows = [federated_round(round_, fed) for round_ in range(1, config.rounds + 1)]
        fed.model.load(fed.view, fed.server.buffers)
        tensors = fed.model.module.state_dict(keep_vars=True)
        played[name] = ({key: whole(value).clone() for key, value in tensors.items()}, rows)
    return played
