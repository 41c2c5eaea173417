"""Build the parties of a run on this rank, by its mode."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from flare_dist.algorithms.algorithm import FEDAVG
from flare_dist.comm.config import GradientsConfig
from flare_dist.comm.world import World
from flare_dist.compatibility import EXCLUSIONS
from flare_dist.compression.compressor import Compressor
from flare_dist.config.config import Config, with_values
from flare_dist.data.batches import SharedEpochs
from flare_dist.data.datasets import DataSplits, load
from flare_dist.data.examine import warn_of_untested
from flare_dist.data.holdings import in_words
from flare_dist.data.partition import Partition, hold_out_of_each, partition
from flare_dist.data.source import Source
from flare_dist.exclusion import refuse
from flare_dist.fixed import fix_constants
from flare_dist.layout import separate_buffers
from flare_dist.models import registry
from flare_dist.models.task_trial import check_criterion, check_task, check_torchmetrics
from flare_dist.models.trial import constant_buffers, unused_parameters
from flare_dist.rounds.alike import share_start
from flare_dist.rounds.break_even import report_break_even
from flare_dist.rounds.build_federation import build_federation
from flare_dist.rounds.build_local_trainer import build_local_trainer, place
from flare_dist.rounds.centralised import Centralised
from flare_dist.rounds.data_parallel import DataParallel
from flare_dist.rounds.federation import Federation
from flare_dist.rounds.gradient import rank_weight
from flare_dist.rounds.num_clients import resolve_num_clients
from flare_dist.rounds.one_batch import resolve_together
from flare_dist.rounds.smallest_batch import resolve_smallest_batch
from flare_dist.server.server import Server
from flare_dist.tasks.batch import Blank
from flare_dist.tasks.config import is_users
from flare_dist.tasks.task import Shape, Task
from flare_dist.units import counted
from flare_dist.vocabulary import Vocabulary

log = logging.getLogger(__name__)


def divide(config: Config, data: DataSplits) -> Partition:
    """Divide the examples among the clients; if the data are pooled, one holds them all."""
    if config.mode != "federated":
        return Partition(torch.arange(len(data.train)), [len(data.train)])
    clients = config.clients.count
    parts = partition(config.data, data.train, data.task, data.num_classes, clients, config.seed)
    fraction = config.evaluation.client_holdout
    return hold_out_of_each(parts, fraction, config.seed) if fraction else parts


def construct(
    config: Config,
    shape: Shape | None,
    num_classes: int | None,
    task: Task,
    blank: Blank | None = None,
    vocabulary: Vocabulary | None = None,
) -> nn.Module:
    """Build the configured model with its initial weights, and try it on `blank`, or on float32 inputs of `shape`."""
    own = config.model
    seed = config.seed
    return registry.build(
        own.name, own.norm, shape, num_classes, seed, task, options=own.options, blank=blank, vocabulary=vocabulary
    )


def build_for(config: Config, data: DataSplits) -> nn.Module:
    """Build the configured model for these data, with its initial weights."""
    model = construct(config, data.input_shape, data.num_classes, data.task, data.blank, data.vocabulary)
    few = data.sample(2)
    if is_users(data.task_name):
        check_task(model, few, data.task)
    check_criterion(model, few, data.task)
    check_torchmetrics(model, few, data.task)
    if constants := constant_buffers(model, few, data.task):
        fix_constants(model, constants)
    return model


class Loaded(NamedTuple):
    """A run's configuration with its task, its data, their division and the model with its initial weights."""

    config: Config
    data: DataSplits
    parts: Partition
    model: nn.Module


def load_parts(config: Config, source: Source | None = None) -> Loaded:
    """Load the data or take `source`, divide them among the clients, and build the model for them."""
    data = load(config.data, config.seed, config.task, source)
    groups = data.test.groups
    refuse(EXCLUSIONS, evaluation=config.evaluation, test_groups=0 if groups is None else len(groups.unique()))
    if config.evaluation.by_group and config.data.partition != "natural":  # of which load has warned
        warn_of_untested(data.train, data.test)
    resolved = {"task.name": data.task_name, "task.best": ":".join(data.task.best)}
    config = resolve_num_clients(with_values(config, resolved), data)
    return Loaded(config, data, divide(config, data), build_for(config, data))


def resolve_by_model(given: Loaded, device: str) -> Config:
    """Resolve the keys that the model and the data decide; `device` is cpu or cuda."""
    config = resolve_smallest_batch(given.config, given.parts.sizes, given.data, given.model)
    data = given.data
    return resolve_together(config, given.model, data.blank if data.is_resident else data.sample, device, data.task)


def build_run(config: Config, world: World, data: DataSplits, parts: Partition, model: nn.Module) -> Run:
    """Build the parties of a run on this rank, at its beginning; `model` becomes rank 0's, if it was another."""
    separate_buffers(model)
    share_start(world, model)
    run = BUILDERS[config.mode](config, world, data, parts, model)
    log.info("data: %s", in_words(data, config.clients.count if config.mode == "federated" else 0))
    ranks = counted(world.size, "rank")
    if world.host.shards > 1:
        ranks = f"{counted(world.hosts, 'host')} of {counted(world.host.shards, 'rank')}"
    threads = counted(torch.get_num_threads(), "thread")
    machine = f"{ranks} on {world.device.type} with {threads} each"
    if world.size > 1:
        machine = f"{machine}, over {world.backend}"
    held = run.model.shard.whole if run.model.shard else run.model.layout
    log.info("%s: %s, %d parameters, %s", config.output_dir, config.model.name, held.total, machine)
    return run


def build_data_parallel(
    config: Config, world: World, data: DataSplits, parts: Partition, model: nn.Module
) -> DataParallel:
    """Build the model and the hook of mode: gradient."""
    gradients = _with_unused(config, model, data)
    local: Any = place(config, world, data, model)  # not of fsdp, which compatibility.py refuses in this mode
    trainer = build_local_trainer(config, world, data, local, FEDAVG)
    report_break_even(config, Compressor(config.exchanged, local.layout, config.seed, world.device), world.hosts)
    hook = local.distribute(gradients, config.seed, partial(rank_weight, world), **vars(config.exchanged))
    hook.clock.on_send = world.progress.arrive
    epochs = SharedEpochs(len(trainer.source), config.clients.batch_size, world.hosts, config.seed)
    server = Server(local.parameters, local.buffers, config.server, config.rounds)
    return DataParallel(config, world, data.task, trainer, server, hook, epochs)


def build_centralised(
    config: Config, world: World, data: DataSplits, parts: Partition, model: nn.Module
) -> Centralised:
    """Build the trainer of mode: centralised."""
    trainer = build_local_trainer(config, world, data, place(config, world, data, model), FEDAVG)
    server = Server(trainer.model.parameters, trainer.model.buffers, config.server, config.rounds)
    return Centralised(config, world, data.task, trainer, server, parts[0])


def set_up(config: Config, world: World | None = None) -> Run:
    """Build the parties of a configuration from its data on, without a run directory: for benchmarks and tests.

    Without a `world` there is this process alone, on the device that the configuration names.
    """
    world = world or World(device=torch.device(config.engine.device))
    given = load_parts(config)
    config = resolve_by_model(given, world.device.type)
    return build_run(config, world, given.data, given.parts, given.model)


def set_up_federation(config: Config, world: World | None = None) -> Federation:
    """Build a federation, as `set_up` does; raises ValueError if the mode is another."""
    run = set_up(config, world)
    if not isinstance(run, Federation):
        raise ValueError(f"mode: must be federated, got {config.mode}")
    return run


def _with_unused(config: Config, model: nn.Module, data: DataSplits) -> GradientsConfig:
    """Return the settings of the exchange of gradients; finds unused parameters if some take no part."""
    try:
        unused = unused_parameters(model, data.blank, data.task)
    except ValueError as error:
        raise ValueError(f"model.name: {config.model.name} {error}") from error
    if not unused or config.gradients.find_unused_parameters:
        return config.gradients
    log.info("gradients.find_unused_parameters: true, for %s of %s takes no part", unused[0], config.model.name)
    return dataclasses.replace(config.gradients, find_unused_parameters=True)


Run = Federation | DataParallel | Centralised
BUILDERS: dict[str, Callable[..., Run]] = {
    "federated": build_federation,
    "gradient": build_data_parallel,
    "centralised": build_centralised,
}
