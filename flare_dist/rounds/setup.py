"""Build the parties of a run on this rank, by its mode."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.optim import Optimizer

from flare_dist.algorithms.algorithm import FEDAVG, Algorithm
from flare_dist.algorithms.methods import algorithm_of
from flare_dist.clients.batchable import most_clients
from flare_dist.clients.batched import BatchedTrainer
from flare_dist.clients.client import LocalModel, LocalTrainer
from flare_dist.clients.hosted import Clients
from flare_dist.clients.optimizers import OPTIMIZERS
from flare_dist.clients.spill import SpilledStates
from flare_dist.clients.state import ClientStates
from flare_dist.comm.config import GradientsConfig
from flare_dist.comm.world import World
from flare_dist.compression.compressor import Compressor
from flare_dist.config.config import Config
from flare_dist.data.batches import BatchSource, SharedEpochs
from flare_dist.data.datasets import DataSplits, load
from flare_dist.data.partition import Partition, partition
from flare_dist.engines.build import build_model
from flare_dist.layout import parameter_layout, separate_buffers
from flare_dist.models import registry
from flare_dist.models.trial import unused_parameters
from flare_dist.rounds.alike import share_start
from flare_dist.rounds.centralised import Centralised
from flare_dist.rounds.data_parallel import DataParallel
from flare_dist.rounds.federation import Federation
from flare_dist.rounds.gradient import rank_weight
from flare_dist.rounds.ledger import report_break_even
from flare_dist.rounds.masked_uplink import MaskedUplink
from flare_dist.rounds.smallest import settle_smallest_batch
from flare_dist.rounds.together import settle_together
from flare_dist.rounds.uplink import WholeUplink, memory_names
from flare_dist.seeding import derive_seed, seeded
from flare_dist.server.downlink import Downlink
from flare_dist.server.server import Server
from flare_dist.sparse_training.consensus import Masks
from flare_dist.sparse_training.masks import prunable_entries
from flare_dist.sparse_training.methods import METHODS
from flare_dist.sparse_training.no_masks import NoMasks
from flare_dist.sparse_training.readjust import uses_of
from flare_dist.units import counted

if TYPE_CHECKING:
    from flare_dist.engines.build import EngineModel

log = logging.getLogger(__name__)


def divide(config: Config, data: DataSplits) -> Partition:
    """Divide the examples among the clients; if the data are pooled, one holds them all."""
    if config.mode != "federated":
        return Partition(torch.arange(len(data.train.labels)), [len(data.train.labels)])
    return partition(config.data, data.train, data.num_classes, config.clients.num, config.seed)


def build_for(config: Config, data: DataSplits) -> nn.Module:
    """Build the configured model for these data, with its initial weights."""
    shape, dtype = data.input_shape, data.blank.dtype
    return registry.build(config.model.name, config.model.norm, shape, data.num_classes, config.seed, data.task, dtype)


def build_run(config: Config, world: World, data: DataSplits, parts: Partition, model: nn.Module) -> Run:
    """Build the parties of a run on this rank, at its beginning; `model` becomes rank 0's, if it was another."""
    separate_buffers(model)
    share_start(world, model)
    run = BUILDERS[config.mode](config, world, data, parts, model)
    ranks, threads = counted(world.size, "rank"), counted(torch.get_num_threads(), "thread")
    machine = f"{ranks} on {world.device.type} with {threads} each"
    log.info("%s: %s, %d parameters, %s", config.output_dir, config.model.name, run.model.layout.total, machine)
    return run


def build_federation(config: Config, world: World, data: DataSplits, parts: Partition, model: nn.Module) -> Federation:
    """Build the federation of mode: federated."""
    masks = build_masks(config, world, data, model)
    room = 0  # for clients that are trained as one batch; worked out while the model is as it was built
    if config.clients.together == "always":
        room = most_clients(model, data.blank, config.clients.largest_batch(parts.sizes), world.device)
    feedback = "none" if config.exchanged.is_dense else config.exchanged.rule
    algorithm = algorithm_of(config.clients, config.server.aggregator, feedback)
    trainer = build_trainer(config, world, data, place(config, world, data, model), algorithm)
    layout = trainer.model.layout
    compressor = Compressor(config.exchanged, layout, config.seed, world.device)
    report_break_even(config, compressor, world.size)
    states = build_memory(config, world, layout.total, remembered(algorithm, compressor))
    server = Server(trainer.model.parameters, trainer.model.buffers, config.server, config.rounds, algorithm)
    return Federation(
        config,
        world,
        data.task,
        Clients(trainer, states, parts, BatchedTrainer(trainer, room, data.task) if room else None),
        compressor,
        server,
        Downlink(config.exchanged, layout, server.parameters.data),
        masks,
        BatchSource(data.validation, data.mean, data.std, world.device) if data.validation else None,
        partial(MaskedUplink, masks=masks) if isinstance(masks, Masks) else WholeUplink,
    )


def build_data_parallel(
    config: Config, world: World, data: DataSplits, parts: Partition, model: nn.Module
) -> DataParallel:
    """Build the model and the hook of mode: gradient."""
    gradients = _with_unused(config, model, data)
    local = place(config, world, data, model)
    trainer = build_trainer(config, world, data, local, FEDAVG)
    report_break_even(config, Compressor(config.exchanged, local.layout, config.seed, world.device), world.size)
    hook = local.distribute(gradients, config.seed, partial(rank_weight, world), **vars(config.exchanged))
    epochs = SharedEpochs(len(trainer.source), config.clients.batch_size, world.size, config.seed)
    server = Server(local.parameters, local.buffers, config.server, config.rounds)
    return DataParallel(config, world, data.task, trainer, server, hook, epochs, config.exchanged.feedback.state_names)


def build_centralised(
    config: Config, world: World, data: DataSplits, parts: Partition, model: nn.Module
) -> Centralised:
    """Build the trainer of mode: centralised."""
    trainer = build_trainer(config, world, data, place(config, world, data, model), FEDAVG)
    server = Server(trainer.model.parameters, trainer.model.buffers, config.server, config.rounds)
    return Centralised(config, world, data.task, trainer, server, parts[0])


def place(config: Config, world: World, data: DataSplits, model: nn.Module) -> EngineModel:
    """Place the model on the device in the precision of the engine, with the clients' optimizer."""
    clients = config.clients
    alone = config.mode != "gradient"

    def make_optimizer(parameters: list[nn.Parameter]) -> Optimizer:
        return OPTIMIZERS[clients.optimizer](parameters, clients.lr, clients.momentum, clients.weight_decay)

    clipping, smallest = clients.gradient_clipping, clients.smallest
    return build_model(config.engine, model, world, make_optimizer, clipping, alone, data.task, smallest)


def build_trainer(
    config: Config, world: World, data: DataSplits, local: LocalModel, algorithm: Algorithm
) -> LocalTrainer:
    """Build the loop of local steps over the training data."""
    outside = data.task.ignored if data.task.is_dense else None
    source = BatchSource(data.train, data.mean, data.std, world.device, config.data.augment, outside)
    return LocalTrainer(local, source, config.clients, config.rounds, config.seed, algorithm)


def build_memory(config: Config, world: World, total: int, names: tuple[str, ...]) -> ClientStates | SpilledStates:
    """Build what keeps the clients' vectors of these names, in memory or in files."""
    clients = config.clients
    if not names:
        return ClientStates(names, total, world.device)
    homed = [len(range(rank, clients.num, world.size)) for rank in range(world.size)]
    share = f", {min(homed)} to {max(homed)} on each" if min(homed) < max(homed) else f", {max(homed)} on each"
    ranks = counted(world.size, "rank")
    log.info("%s on %s%s", counted(clients.num, "client lives", "clients live"), ranks, share)
    if clients.state_dir is None:
        return ClientStates(names, total, world.device)
    return SpilledStates(names, total, world.device, Path(clients.state_dir), (world.rank, world.size))


def remembered(algorithm: Algorithm, compressor: Compressor) -> tuple[str, ...]:
    """Name the vectors that a client remembers: error feedback's of each payload, and the algorithm's."""
    fed_back = [memory_names(compressor, payload) for payload in algorithm.sends]
    return tuple(fed_back[0].values()) + algorithm.memory + tuple(n for names in fed_back[1:] for n in names.values())


def set_up(config: Config, world: World | None = None) -> Run:
    """Build the parties of a configuration from its data on, without a run directory: for benchmarks and tests.

    Without a `world` there is this process alone, on the device that the configuration names.
    """
    world = world or World(device=torch.device(config.engine.device))
    data = load(config.data, config.seed, config.task.name)
    model = build_for(config, data)
    parts = divide(config, data)
    config = settle_smallest_batch(config, parts.sizes, data, model)
    config = settle_together(config, model, data.blank, world.device.type, data.task)
    return build_run(config, world, data, parts, model)


def set_up_federation(config: Config, world: World | None = None) -> Federation:
    """Build a federation, as `set_up` does; raises ValueError if the mode is another."""
    run = set_up(config, world)
    if not isinstance(run, Federation):
        raise ValueError(f"mode: must be federated, got {config.mode}")
    return run


def _with_unused(config: Config, model: nn.Module, data: DataSplits) -> GradientsConfig:
    """Return the settings of the exchange of gradients; finds unused parameters if some take no part."""
    try:
        unused = unused_parameters(model, data.blank)
    except ValueError as error:
        raise ValueError(f"model.name: {config.model.name} {error}") from error
    if not unused or config.gradients.find_unused_parameters:
        return config.gradients
    log.info("gradients.find_unused_parameters: true, for %s of %s takes no part", unused[0], config.model.name)
    return dataclasses.replace(config.gradients, find_unused_parameters=True)


def build_masks(config: Config, world: World, data: DataSplits, model: nn.Module) -> Masks | NoMasks:
    """Build the masks of a sparse model, before an engine has taken it to another device or precision."""
    if not config.sparse_training.is_sparse:
        return NoMasks()
    layout = parameter_layout(model)
    entries = prunable_entries(model, layout, config.sparse_training)
    uses: Sequence[float] = ()
    if METHODS[config.sparse_training.method].is_measured:
        with seeded(derive_seed(config.seed, "uses")):
            uses = uses_of(model, entries, data.blank)
    return Masks(config.sparse_training, entries, layout.total, config.seed, config.rounds, world.device, uses)


Run = Federation | DataParallel | Centralised
BUILDERS: dict[str, Callable[..., Run]] = {
    "federated": build_federation,
    "gradient": build_data_parallel,
    "centralised": build_centralised,
}
