"""The parties of a run on this rank, at its beginning."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer

from flare_dist.algorithms.algorithm import FEDAVG, Algorithm
from flare_dist.algorithms.methods import algorithm_of
from flare_dist.clients.batchable import most_clients
from flare_dist.clients.batched import BatchedTrainer
from flare_dist.clients.client import LocalTrainer
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
from flare_dist.models.registry import build
from flare_dist.models.trial import unused_parameters
from flare_dist.rounds.alike import share_start
from flare_dist.rounds.gradient import rank_weight
from flare_dist.rounds.ledger import report_break_even
from flare_dist.rounds.parties import DataParallel, Parties
from flare_dist.rounds.smallest import settle_smallest_batch
from flare_dist.rounds.together import settle_together
from flare_dist.rounds.uplinks import feedback_names
from flare_dist.seeding import derive_seed, seeded
from flare_dist.server.downlink import Downlink
from flare_dist.server.masks import Masks
from flare_dist.server.server import Server
from flare_dist.sparse_training.masks import prunable_entries
from flare_dist.sparse_training.methods import METHODS
from flare_dist.sparse_training.readjust import uses_of
from flare_dist.units import counted

log = logging.getLogger(__name__)


def divide(config: Config, data: DataSplits) -> Partition:
    """The indices of each client's examples; where the data are pooled, one client holds them all."""
    if config.mode != "federated":
        return Partition(torch.arange(len(data.train.labels)), [len(data.train.labels)])
    return partition(config.data, data.train, data.num_classes, config.clients.num, config.seed)


def build_for(config: Config, data: DataSplits) -> nn.Module:
    """The configured model for these data, with its initial weights."""
    shape, dtype = data.input_shape, data.blank.dtype
    return build(config.model.name, config.model.norm, shape, data.num_classes, config.seed, data.task, dtype)


def build_parties(config: Config, world: World, data: DataSplits, parts: Partition, model: nn.Module) -> Parties:
    """The parties of a run on this rank, at its beginning; `model` becomes that of rank 0, if it was another."""
    clients = config.clients
    separate_buffers(model)
    share_start(world, model)

    def make_optimizer(parameters: list[nn.Parameter]) -> Optimizer:
        return OPTIMIZERS[clients.optimizer](parameters, clients.lr, clients.momentum, clients.weight_decay)

    masks = _masks(config, world, data, model) if config.sparse_training.is_sparse else None
    alone = config.mode != "gradient"
    room = 0  # for clients that are trained as one batch; worked out while the model is as it was built
    if clients.together == "always":
        room = most_clients(model, data.blank, clients.largest_batch(parts.sizes), world.device)
    gradients = _with_unused(config, model, data) if config.mode == "gradient" else config.gradients
    local = build_model(
        config.engine, model, world, make_optimizer, clients.gradient_clipping, alone, data.task, clients.smallest
    )
    outside = data.task.ignored if data.task.is_dense else None
    source = BatchSource(data.train, data.mean, data.std, world.device, config.data.augment, outside)
    federated = config.mode == "federated"  # elsewhere nobody is sent a view of the parameters
    algorithm = algorithm_of(clients, config.server.aggregator) if federated else FEDAVG
    trainer = LocalTrainer(local, source, clients, config.rounds, config.seed, algorithm)
    batched = BatchedTrainer(trainer, room, data.task) if room else None
    compressor = Compressor(config.exchanged, local.layout, config.seed, world.device)
    remembered = (_remembered(algorithm, compressor), local.layout.total, world.device)
    states: ClientStates | SpilledStates = ClientStates(*remembered)
    if clients.state_dir is not None and federated and states.names:
        states = SpilledStates(*remembered, Path(clients.state_dir), (world.rank, world.size))
    start = (local.parameters, local.buffers)
    server = Server(*start, config.server, config.rounds, compressor.estimated, algorithm)
    downlink = Downlink(config.exchanged, local.layout, server.parameters.data)
    ranks, threads = counted(world.size, "rank"), counted(torch.get_num_threads(), "thread")
    machine = f"{ranks} on {world.device.type} with {threads} each"
    log.info("%s: %s, %d parameters, %s", config.output_dir, config.model.name, local.layout.total, machine)
    report_break_even(config, compressor, world.size)
    if states.names and federated:
        homed = [len(range(rank, clients.num, world.size)) for rank in range(world.size)]
        share = f", {min(homed)} to {max(homed)} on each" if min(homed) < max(homed) else f", {max(homed)} on each"
        log.info("%s on %s%s", counted(clients.num, "client lives", "clients live"), ranks, share)
    parallel = None
    if config.mode == "gradient":
        hook = local.distribute(gradients, config.seed, partial(rank_weight, world), **vars(config.exchanged))
        parallel = DataParallel(hook, SharedEpochs(len(source), clients.batch_size, world.size, config.seed))
    held_out = BatchSource(data.validation, data.mean, data.std, world.device) if data.validation else None
    return Parties(
        world, trainer, compressor, states, server, downlink, parts, data.task, batched, masks, held_out, parallel
    )


def _remembered(algorithm: Algorithm, compressor: Compressor) -> tuple[str, ...]:
    """The names of the vectors that a client remembers: error feedback's of each payload, and the algorithm's."""
    fed_back = [feedback_names(compressor, payload) for payload in algorithm.sends]
    return tuple(fed_back[0].values()) + algorithm.memory + tuple(n for names in fed_back[1:] for n in names.values())


def set_up(config: Config, world: World | None = None) -> Parties:
    """The parties of a configuration from its data on, without a run directory: for benchmarks and tests.

    Without a `world` there is this process alone, on the device that the configuration names.
    """
    world = world or World(device=torch.device(config.engine.device))
    data = load(config.data, config.seed, config.task.name)
    model = build_for(config, data)
    parts = divide(config, data)
    config = settle_smallest_batch(config, parts.sizes, data, model)
    config = settle_together(config, model, data.blank, world.device.type, data.task)
    return build_parties(config, world, data, parts, model)


def _with_unused(config: Config, model: nn.Module, data: DataSplits) -> GradientsConfig:
    """The settings of the exchange of gradients; find_unused_parameters is true if some parameters have none."""
    try:
        unused = unused_parameters(model, data.blank)
    except ValueError as error:
        raise ValueError(f"model.name: {config.model.name} {error}") from error
    if not unused or config.gradients.find_unused_parameters:
        return config.gradients
    log.info("gradients.find_unused_parameters: true, for %s of %s takes no part", unused[0], config.model.name)
    return dataclasses.replace(config.gradients, find_unused_parameters=True)


def _masks(config: Config, world: World, data: DataSplits, model: nn.Module) -> Masks:
    """The masks of a sparse model, before an engine has taken it to another device or precision."""
    layout = parameter_layout(model)
    entries = prunable_entries(model, layout, config.sparse_training)
    uses: Sequence[float] = ()
    if METHODS[config.sparse_training.method].is_measured:
        with seeded(derive_seed(config.seed, "uses")):
            uses = uses_of(model, entries, data.blank)
    return Masks(config.sparse_training, entries, layout.total, config.seed, config.rounds, world.device, uses)
