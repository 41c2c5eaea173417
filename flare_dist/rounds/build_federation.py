"""Build the federation of a run on this rank, from its configuration."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from flare_dist.algorithms.algorithm import Algorithm
from flare_dist.algorithms.compose import compose
from flare_dist.algorithms.methods import algorithm_of
from flare_dist.clients.batchable import most_clients
from flare_dist.clients.batched import BatchedTrainer
from flare_dist.clients.client import LocalTrainer
from flare_dist.clients.evaluation import batch_size, evaluate, evaluation_seed
from flare_dist.clients.hosting import Clients
from flare_dist.clients.kept_optimizer import OPTIMIZER
from flare_dist.clients.local_model import LocalModel
from flare_dist.clients.mapped_states import FileStates
from flare_dist.clients.personalised import Personalised
from flare_dist.clients.state import ClientStates
from flare_dist.comm.world import World
from flare_dist.compression.compressor import Compressor
from flare_dist.config.config import Config
from flare_dist.data.batches import Batches
from flare_dist.data.config import DataConfig
from flare_dist.data.datasets import DataSplits
from flare_dist.data.holdings import client_groups
from flare_dist.data.partition import Partition
from flare_dist.exclusion import refuse
from flare_dist.layout import Entry, parameter_layout
from flare_dist.rounds.break_even import report_break_even
from flare_dist.rounds.build_local_trainer import build_local_trainer, place
from flare_dist.rounds.federation import Federation
from flare_dist.rounds.masked_uplink import sparse_models
from flare_dist.rounds.uplink import WholeUplink, memory_names
from flare_dist.seeding import derive_seed, seeded
from flare_dist.server.downlink import Downlink
from flare_dist.server.server import Server
from flare_dist.sparse_training.consensus import Masks
from flare_dist.sparse_training.layers import Layers
from flare_dist.sparse_training.methods import METHODS
from flare_dist.sparse_training.no_masks import NoMasks
from flare_dist.sparse_training.prunable import prunable_entries
from flare_dist.sparse_training.readjust import uses_of
from flare_dist.units import counted

log = logging.getLogger(__name__)


def build_federation(config: Config, world: World, data: DataSplits, parts: Partition, model: nn.Module) -> Federation:
    """Build the federation of mode: federated."""
    prunable = find_prunable(config, data, model)
    room = 0  # for clients that are trained as one batch; worked out while the model is as it was built
    if config.clients.together == "always":
        assert isinstance(data.blank, Tensor), "examples of a Dataset are read for one client after another"
        largest = config.clients.largest_batch(parts.sizes)
        room = most_clients(model, data.blank, largest, world.device, is_fixed=config.engine.deterministic)
    feedback = "none" if config.exchanged.is_dense else config.exchanged.rule
    server_ = config.server
    algorithm = algorithm_of(config.clients, server_.aggregator, feedback, server_.aggregator_options)
    refuse(algorithm.excludes, **vars(config))
    placed = place(config, world, data, model)
    masks = build_masks(config, world, prunable, placed)
    algorithm = compose(algorithm, sparse_models(masks))
    trainer = build_local_trainer(config, world, data, placed, algorithm)
    layout = trainer.model.layout
    compressor = Compressor(config.exchanged, layout, config.seed, world.device)
    report_break_even(config, compressor, world.hosts)
    sizes = {OPTIMIZER: trainer.kept.size} if trainer.kept else {}
    states = build_memory(config, world, layout.total, remembered(algorithm, compressor, *sizes), sizes)
    local = trainer.model
    server = Server(local.parameters, local.buffers, config.server, config.rounds, algorithm, layout)
    batched = BatchedTrainer(trainer, room, data.task) if room else None
    personal = _personalised(config, data, parts, trainer)
    clients = Clients(
        trainer, states, parts, config.clients.cohort_size, batched, personal, groups_of(config.data, data, parts)
    )
    return Federation(
        config=config,
        world=world,
        task=data.task,
        clients=clients,
        compressor=compressor,
        server=server,
        downlink=Downlink(config.exchanged, layout, server.parameters.data),
        masks=masks,
        held_out=None if data.validation is None else _noted(data.batches(data.validation, world.device), world),
        open_uplink=algorithm.wraps or WholeUplink,
    )


def _noted(source: Batches, world: World) -> Batches:
    """Count the batches of `source` as signs that this rank advances."""
    source.on_batch = world.on_batch
    return source


def _personalised(config: Config, data: DataSplits, parts: Partition, trainer: LocalTrainer) -> Personalised | None:
    """Build the measuring of the clients' own models, if it is asked for."""
    if not config.evaluation.personalised or parts.held_out is None:
        return None
    module = trainer.model.module
    seed = evaluation_seed(config.seed, "clients")
    at_once = batch_size(data.is_resident, config.clients.batch_size)
    metric, _ = data.task.best

    def measure(own: Tensor) -> float:
        return evaluate(module, trainer.source, data.task, seed, at_once, own).get(metric, math.nan)

    return Personalised(measure, parts.held_out, config.eval_every, config.rounds)


def groups_of(config: DataConfig, data: DataSplits, parts: Partition) -> list[str]:
    """Name the group of each client if the partition goes by groups that have names; [] otherwise."""
    return client_groups(list(parts), data.train) if config.partition == "natural" and data.train.group_names else []


class Prunable(NamedTuple):
    """The prunable weights of a sparse model, and how often an example uses each, if the method asks for it."""

    entries: Sequence[Entry] = ()
    uses: Sequence[float] = ()


def find_prunable(config: Config, data: DataSplits, model: nn.Module) -> Prunable:
    """Find what masks are of, before an engine takes the model to another device or precision, or divides it."""
    if not config.sparse_training.is_sparse:
        return Prunable()
    entries = prunable_entries(model, parameter_layout(model), config.sparse_training)
    uses: Sequence[float] = ()
    if METHODS[config.sparse_training.method].is_measured:
        if not isinstance(data.blank, Tensor):
            raise ValueError(
                f"sparse_training.method: {config.sparse_training.method} counts the uses of weights for inputs that "
                "are one tensor of one shape, got other ones; choose another method"
            )
        with seeded(derive_seed(config.seed, "uses")):
            uses = uses_of(model, entries, data.blank)
    return Prunable(entries, uses)


def build_masks(config: Config, world: World, prunable: Prunable, model: LocalModel) -> Masks | NoMasks:
    """Build the masks of a sparse model, of which this rank may hold a part."""
    sparse = config.sparse_training
    if not sparse.is_sparse:
        return NoMasks()
    layers = Layers.of(prunable.entries, world.host, model.shard)
    total = model.layout.total
    return Masks(sparse, layers, total, config.seed, config.rounds, world.device, prunable.uses)


def build_memory(
    config: Config, world: World, total: int, names: tuple[str, ...], sizes: Mapping[str, int]
) -> ClientStates | FileStates:
    """Build what keeps the clients' vectors of these names, float32 [total] or of `sizes`, in memory or in files."""
    clients = config.clients
    if not names:
        return ClientStates(names, total, world.device)
    homed = [len(range(rank, clients.count, world.hosts)) for rank in range(world.hosts)]
    spread = f", {min(homed)} to {max(homed)} on each" if min(homed) < max(homed) else f", {max(homed)} on each"
    ranks = counted(world.hosts, "rank")
    log.info("%s on %s%s", counted(clients.count, "client lives", "clients live"), ranks, spread)
    if clients.state_dir is None:
        return ClientStates(names, total, world.device, sizes)
    share = (world.host_number, world.hosts)
    return FileStates(names, total, world.device, Path(clients.state_dir), share, sizes)


def remembered(algorithm: Algorithm, compressor: Compressor, *kept: str) -> tuple[str, ...]:
    """Name the vectors that a client remembers: error feedback's of each payload, the algorithm's, and what is kept."""
    fed_back = [memory_names(compressor, payload) for payload in algorithm.sends]
    beside = (n for names in fed_back[1:] for n in names.values())
    names = (*fed_back[0].values(), *algorithm.memory, *beside, *kept)
    twice = [name for name in algorithm.memory if names.count(name) > 1]
    if twice:
        whose = "keep_optimizer" if twice[0] in kept else "error feedback"
        raise ValueError(f"clients.objective: remembers {twice[0]!r}, a name of {whose}'s; choose another")
    return names
