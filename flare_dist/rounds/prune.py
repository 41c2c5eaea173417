"""Pruning before training, once before the rounds: which weights are kept is decided by their scores.

Criteria that look at data are federated: a few clients measure gradients, or products of the Hessian with them, on a
few mini-batches and send those of the weights that are still there; the server averages them and makes scores of it.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from flare_dist.clients.hosting import hosting_ranks
from flare_dist.comm.cohort import Cohort, mean_in_order
from flare_dist.compression.index_codecs import positions_nbytes
from flare_dist.compression.payload import WORD
from flare_dist.config.config import Config
from flare_dist.rounds.diverged import DivergedError
from flare_dist.rounds.federation import Federation
from flare_dist.rounds.ledger import Stopwatch
from flare_dist.seeding import derive_seed, generator, seed_draws
from flare_dist.server.aggregation import cohort_weights
from flare_dist.server.server import sample_cohort
from flare_dist.sparse_training.consensus import Masks
from flare_dist.sparse_training.criteria import CRITERIA, Batches
from flare_dist.sparse_training.divided import DIVIDED
from flare_dist.sparse_training.masks import budget, layer_counts, layers_of, sizes
from flare_dist.sparse_training.pruning import highest, layer_shares
from flare_dist.tasks.batch import labels_of
from flare_dist.tasks.task import Batch

log = logging.getLogger(__name__)

SERVER = -1  # as a client: the server's own examples


def prune(fed: Federation, masks: Masks) -> dict[str, Any]:
    """Choose the mask; all ranks call it together. Returns what the row of round 0 says of it.

    Raises DivergedError on all ranks if no client measures anything finite.
    """
    world = fed.world
    layers = masks.layers
    settings = fed.config.pruning
    criterion = CRITERIA[settings.criterion]
    drawn = _asked(fed.config) if criterion.needs_data else []
    watch = Stopwatch(world)
    parameters = fed.view
    mask = torch.ones(masks.total, dtype=torch.bool, device=world.device)
    prunable = sum(sizes(layers.whole))
    own_prunable = sum(sizes(layers.own))  # bytes are those of this rank's part
    keep = budget(masks.config, layers.whole)
    uplink_nbytes = 0
    # The model once, then the masks alone.
    downlink_nbytes = WORD * masks.total * len(drawn)
    for step in range(1, settings.steps + 1):
        density = (keep / prunable) ** (step / settings.steps)
        fed.model.load(parameters * mask, fed.server.buffers)
        with watch.phase("compute"):
            measured, senders = _measure(fed, masks, drawn, step)
        scores = _scores(fed.config, masks, parameters, measured, step)
        left = keep if step == settings.steps else round(density * prunable)
        if settings.criterion == "threshold" and step == settings.steps:
            passing = sum(layer_counts(scores * mask >= settings.threshold, layers))
            left = max(len(layers.whole), min(left, passing))
        active = int(mask.count_nonzero()) - masks.total + own_prunable
        downlink_nbytes += len(drawn) * positions_nbytes(own_prunable, active) if step > 1 else 0
        uplink_nbytes += WORD * active * senders
        mask = highest(scores, layers, left, mask, layer_shares(settings.scope, layers.whole))
    if not criterion.needs_data:  # each rank has scored for itself, and GPUs need not agree to the last bit
        world.broadcast_(mask)
    masks.begin_with(mask)
    log.info("pruned by %s: %d of %d weights are kept", settings.criterion, left, prunable)
    return _row(fed, len(drawn), uplink_nbytes, downlink_nbytes, watch)


def _row(fed: Federation, clients: int, uplink_nbytes: int, downlink_nbytes: int, watch: Stopwatch) -> dict[str, Any]:
    """Report the pruning in round 0; the server's own examples travel nowhere. All ranks call it together."""
    settings = fed.config.pruning
    traffic = fed.world.traffic
    federated = settings.data == "clients"
    of_shard = {
        "uplink_bytes": uplink_nbytes if federated else 0,
        "downlink_bytes": downlink_nbytes if federated else 0,
        "wire_bytes": traffic.wire_bytes,
    }
    return {
        "clients": clients if federated else 0,
        **dict(zip(of_shard, fed.world.host.sums(list(of_shard.values())))),
        "collectives": traffic.collectives,
        **watch.totals(),
        "pruned": settings.criterion,
    }


def _asked(config: Config) -> list[int]:
    """Draw the clients that measure, the same on every rank; the server alone if it prunes by examples of its own."""
    if config.pruning.data == "server":
        return [SERVER]
    count = max(1, round(config.pruning.frac * config.clients.count))
    return sample_cohort(config.seed, 0, config.clients.count, count)


def _measure(fed: Federation, masks: Masks, drawn: list[int], step: int) -> tuple[Tensor, int]:
    """Measure the criterion, float32 [total], 0 for what is not prunable; also returns how many clients sent theirs."""
    config = fed.config
    world = fed.world
    module = fed.model.module
    criterion = CRITERIA[config.pruning.criterion]
    named = dict(module.named_parameters())
    weights = [named[entry.name] for entry in masks.layers.whole]
    divided: Any = fed.model if fed.model.shard else None  # among the ranks of a host

    def measure(client: int, batches: Batches) -> Tensor:
        seed_draws(derive_seed(config.seed, "pruning dropout", step, client), world.device)
        if divided:
            measured = DIVIDED[criterion.measure](divided, batches, world.host)
            return _flat(masks, layers_of(measured, masks.layers))
        return _flat(masks, criterion.measure(module, weights, batches, fed.task))

    if not criterion.needs_data:
        batch = fed.clients.trainer.source.batches(torch.zeros(1, dtype=torch.int64), 1, None)
        return measure(SERVER, batch), 0
    hosts = hosting_ranks(drawn, world.hosts, stateful=False)
    own: dict[int, Tensor] = {}
    for client in drawn:
        if hosts[client] == world.host_number:
            own[client] = measure(client, _batches(fed, client))
    world.wait_for_all()
    shares = {SERVER: 1.0}
    if drawn != [SERVER]:
        shares = cohort_weights(drawn, fed.clients.partition.sizes, config.clients.weighting)
    measured, sent = mean_in_order(world, Cohort(hosts, shares), own, masks.total)
    if measured is None:
        raise DivergedError(f"pruning: what {config.pruning.criterion} measures is not finite on any client")
    return measured, len(sent)


def _batches(fed: Federation, client: int) -> list[Batch]:
    source = fed.clients.trainer.source
    examples = None
    if client == SERVER and fed.held_out is not None:
        source = fed.held_out
    else:
        examples = fed.clients.partition[client]
    config = fed.config
    clients = config.clients
    draws = generator(config.seed, "pruning", client=max(client, 0))
    epoch = source.batches(examples, clients.batch_size, draws, clients.smallest)
    batches = list(itertools.islice(epoch, config.pruning.batches))
    if any(_lacks_labels(batch, fed.task.ignored) for batch in batches):
        raise ValueError(
            f"pruning.criterion: {config.pruning.criterion} needs labels, and some examples have none "
            "(magnitude, synflow and random need none)"
        )
    return batches


def _lacks_labels(batch: Batch, ignored: int | None) -> bool:
    """Tell whether some labels are no classes, besides those that the task leaves out."""
    labels = labels_of(batch)
    if labels is None:
        return False
    missing = labels < 0 if ignored is None else (labels < 0) & (labels != ignored)
    return not labels.is_floating_point() and bool(missing.any())


def _flat(masks: Masks, parts: Iterable[Tensor]) -> Tensor:
    """Join a tensor for each layer to one vector [total]."""
    vector = torch.zeros(masks.total, device=masks.device)
    for layer, part in zip(layers_of(vector, masks.layers), parts):
        layer.copy_(part.detach().flatten())
    return vector


def _scores(config: Config, masks: Masks, parameters: Tensor, measured: Tensor, step: int) -> Tensor:
    if config.pruning.criterion == "random":
        return _random_scores(masks, generator(config.seed, "pruning scores", step))
    return CRITERIA[config.pruning.criterion].finish(parameters, measured)


def _random_scores(masks: Masks, draws: torch.Generator) -> Tensor:
    """Draw scores, the same for a weight whichever rank of how many of a host holds it.

    Each rank draws those of the whole model, once before training, and keeps its own.
    """
    layers = masks.layers
    drawn = torch.rand(layers.host.sums([masks.total])[0], generator=draws)
    of_layers = (drawn[entry.offset : entry.end] for entry in layers.whole)
    return _flat(masks, [layers.own_part(number, scores) for number, scores in enumerate(of_layers)])
