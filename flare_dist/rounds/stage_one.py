"""Stage 1 of FLASH, once before the rounds: a few clients find out which layers need their weights.

They train from the same initial model under random masks that they prune and regrow. Nothing of that is kept but how
dense each layer has become: a client sends one number for each prunable layer, and the server makes the densities of
the consensus mask of their means.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from flare_dist.clients.client import LocalTrainer
from flare_dist.clients.hosting import hosting_ranks
from flare_dist.compression.payload import WORD
from flare_dist.layout import Entry
from flare_dist.progress import Steps
from flare_dist.rounds.diverged import DivergedError
from flare_dist.rounds.federation import Federation
from flare_dist.rounds.ledger import Stopwatch
from flare_dist.rounds.prune import prune
from flare_dist.seeding import generator
from flare_dist.server.server import sample_cohort
from flare_dist.sparse_training import flash
from flare_dist.sparse_training.consensus import Masks
from flare_dist.sparse_training.local_mask import LocalMask
from flare_dist.sparse_training.masks import budget, layer_counts
from flare_dist.sparse_training.no_masks import NoMasks
from flare_dist.sparse_training.schedule import falling_rates
from flare_dist.units import counted

log = logging.getLogger(__name__)


def begin_masks(fed: Federation, console: Console) -> dict[str, Any]:
    """Choose the masks with which the rounds begin, by stage 1 or by scores as the method asks, and mask the model.

    Returns their part of the row of round 0; nothing if they have begun, or models are dense. Raises DivergedError on
    all ranks if stage 1 finds nothing, and ValueError if its densities leave a layer empty.
    """
    given = fed.masks
    server = fed.server
    if isinstance(given, NoMasks) or given.have_begun:
        return {}
    masks = given
    row: dict[str, Any] = {}
    method = masks.method
    if method.is_scored:
        row = prune(fed, masks)
    elif method.has_stage_one:
        row = stage_one(fed, masks, console)
        masks.begin(row["stage_one"]["densities"])
    else:
        masks.begin(None)
    masks.apply(server)
    return row | masks.report(server.parameters.data)


def with_beginning(row: dict[str, Any], beginning: dict[str, Any]) -> dict[str, Any]:
    """Add what the beginning of masks took to the row of the round before; bytes and seconds are sums."""
    sums = {k: row[k] + v for k, v in beginning.items() if k.endswith(("_bytes", "_seconds")) and k in row}
    counts = ("clients", "rejected_clients", "collectives", "ranks")
    return row | {key: value for key, value in beginning.items() if key not in counts} | sums


def stage_one(fed: Federation, masks: Masks, console: Console) -> dict[str, Any]:
    """Play stage 1; all ranks call it together. Returns its bytes and seconds, and under `stage_one` its findings."""
    config = fed.config
    world = fed.world
    layers = masks.layers
    settings = masks.config
    drawn = sample_cohort(
        config.seed, 0, config.clients.count, max(1, round(settings.init_frac * config.clients.count))
    )
    epochs = counted(settings.init_epochs, "epoch")
    log.info("stage 1: training for the layer densities: %s, %s each", counted(len(drawn), "client"), epochs)
    watch = Stopwatch(world)
    own = list(hosting_ranks(drawn, world.hosts, stateful=False).values()).count(world.host_number)
    with Steps("stage 1: clients", own, console, at_once=True) as shown:
        sensitivities = _train(fed, masks, drawn, watch, shown)
    world.wait_for_all()
    rows = world.all_reduce_(sensitivities).tolist()
    found = {client: row for client, row in zip(drawn, rows) if any(row)}
    if not found:
        raise DivergedError("stage 1: the losses or deltas of all its clients are not finite; try a lower clients.lr")
    densities = flash.consensus_densities(settings, layers, list(found.values()))
    console.print(density_table(layers.whole, found, densities))
    of_host = [masks.total - sum(entry.numel for entry in layers.own), world.traffic.wire_bytes]
    dense, wire_bytes = world.host.sums(of_host)
    return {
        "clients": len(drawn),
        "rejected_clients": len(drawn) - len(found),
        "uplink_bytes": WORD * len(layers.whole) * len(found),
        "downlink_bytes": WORD * (dense + budget(settings, layers.whole)) * len(drawn),  # masks follow from the seed
        "wire_bytes": wire_bytes,
        "collectives": world.traffic.collectives,
        **watch.totals(),
        "stage_one": {"sensitivities": {str(client): row for client, row in found.items()}, "densities": densities},
    }


def _train(fed: Federation, masks: Masks, drawn: Sequence[int], watch: Stopwatch, shown: Steps) -> Tensor:
    """Train the drawn clients that this rank hosts; returns float32 [drawn, layers], the density of each layer.

    Rows of other ranks' clients, and of those that diverge, are zero.
    """
    config = fed.config
    world = fed.world
    usual = fed.clients.trainer
    clients = dataclasses.replace(config.clients, local_epochs=masks.config.init_epochs, local_steps=None)
    trainer = LocalTrainer(
        usual.model, usual.source, clients, config.rounds, config.seed, usual.algorithm, usual.of_all_shards
    )
    nothing_kept = {name: torch.zeros_like(fed.server.parameters.data) for name in fed.clients.states.names}
    hosts = hosting_ranks(drawn, world.hosts, stateful=False)
    sensitivities = torch.zeros(len(drawn), len(masks.layers.whole), device=world.device)
    for place, client in enumerate(drawn):
        examples = fed.clients.partition[client]
        # On every rank, so that a mask that cannot be is an error on all of them.
        steps = clients.steps_with(len(examples))
        epoch_steps = clients.epoch_steps(len(examples))
        mask = first_mask(masks, client, steps, epoch_steps)
        if hosts[client] != world.host_number:
            continue
        with watch.phase("compute", client):
            buffers = fed.server.buffers
            told = fed.server.told
            result = trainer.train(client, 0, examples, fed.view, buffers, nothing_kept, mask, told)
            if result.is_finite:
                active = layer_counts(mask.mask, masks.layers)
                sensitivities[place] = torch.tensor([count / e.numel for count, e in zip(active, masks.layers.whole)])
        shown.advance(1, WORD * len(masks.layers.whole))
    return sensitivities


def first_mask(masks: Masks, client: int, steps: int, epoch_steps: int) -> LocalMask:
    """Open a random mask of the client's own, of the same density in each layer."""
    config = masks.config
    layers = masks.layers
    draws = generator(masks.seed, "scout mask", client=client)  # the name fixes the bits of runs
    even = [config.density] * len(layers.whole)
    mask = flash.drawn_mask(config, layers, even, masks.total, draws, masks.device)
    rates = falling_rates(config.prune_rate, steps, epoch_steps)
    return LocalMask(config, layers, mask, budget(config, layers.whole), rates, draws, masks.factor, masks.growth)


def density_table(
    entries: Sequence[Entry], sensitivities: Mapping[int, Sequence[float]], densities: Sequence[float]
) -> Table:
    """Tabulate what stage 1 has found, a row for each prunable layer."""
    table = Table(title="stage 1: density of each layer", title_justify="left")
    table.add_column("layer")
    for title in ("weights", "least", "mean", "most of the clients'", "consensus", "active"):
        table.add_column(title, justify="right")
    for place, (entry, density) in enumerate(zip(entries, densities)):
        own = [row[place] for row in sensitivities.values()]
        shown = (min(own), sum(own) / len(own), max(own), density)
        active = f"{round(density * entry.numel):,}"
        table.add_row(entry.name, f"{entry.numel:,}", *(f"{value:.4f}" for value in shown), active)
    return table
