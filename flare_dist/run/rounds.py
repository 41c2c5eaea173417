"""One round, in the order data moves: cohort, local training, compression, exchange, server step.

Every rank runs these functions with the same arguments, except that each hosts its own share of the clients.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import torch

from flare_dist.clients.state import hosting_ranks
from flare_dist.comm.exchange import Cohort
from flare_dist.run.config import Config
from flare_dist.run.gradient import gradient_round
from flare_dist.run.ledger import Stopwatch, centralised_report, federated_report
from flare_dist.run.parties import DivergedError, Parties
from flare_dist.run.uplinks import (
    ControlUplink,
    assign_masks,
    forget_outside,
    local_work,
    mean_work,
    open_uplink,
    remember,
)
from flare_dist.server.aggregation import cohort_weights
from flare_dist.server.server import sample_cohort

log = logging.getLogger(__name__)


def federated_round(round_: int, config: Config, parties: Parties) -> dict[str, Any]:
    """Train the cohort, exchange its updates and step the server; returns the round's report."""
    world, trainer, server, masks = parties.world, parties.trainer, parties.server, parties.masks
    compress = parties.compressor.compress
    watch, view = Stopwatch(world), parties.downlink.view

    # The cohort and its hosts follow from the seed, so every rank knows them.
    drawn = sample_cohort(config.seed, round_, config.clients.num, config.clients.cohort_size)
    num_examples = [len(examples) for examples in parties.partition]
    cohort = Cohort(
        hosting_ranks(drawn, world.size, stateful=bool(parties.states.names)),
        cohort_weights(drawn, num_examples, config.clients.weighting),
    )
    work = local_work(round_, config, drawn, parties)  # of fednova
    assigned = assign_masks(round_, config, drawn, parties)  # nothing where models are dense
    downlink_bytes = masks.downlink_nbytes(assigned) if masks else parties.downlink.nbytes_to(drawn, round_)
    controls = ControlUplink(round_, config, cohort, parties) if server.control is not None else None
    uplink = open_uplink(round_, config, cohort, assigned, parties, _steps_here(parties))

    # Local training and compression, one client after another.
    dropped = dict.fromkeys(drawn, 0)
    for client in cohort.hosted_by(world.rank):
        with parties.states.lend(client) as state:
            with watch.phase("compute"):
                learner = masks.learner(round_, client, assigned[client]) if masks else None
                dropped[client] = forget_outside(learner.mask if learner else None, state)  # what the server has pruned
                examples = parties.partition[client]
                if server.control is not None:
                    state["server_control"] = server.control
                result = trainer.train(client, round_, examples, view, server.buffers, state, learner)
            with watch.phase("select"):
                if result.is_finite:
                    remember(config, state, result)
                    if controls:
                        controls.add(result, state)
                    if work:
                        result.model_delta.div_(work[client])
                    dropped[client] += forget_outside(result.mask, state)  # and what the client has
                    form = assigned[client].form if masks else None
                    uplink.add(result, compress(round_, client, result.model_delta, state, form, result.mask))
                else:
                    uplink.reject(result)
                    if controls:
                        controls.reject(result)

    # The exchange: afterwards every rank that steps the server holds the same mean delta.
    world.wait_for_all()
    exchanged = uplink.exchange(world)
    if controls:
        exchanged = controls.exchange(exchanged)
    if exchanged.rejected:
        names = ", ".join(map(str, exchanged.rejected))
        if not exchanged.accepted:
            raise DivergedError(
                f"round {round_}: the losses or deltas of all clients ({names}) are not finite; try a lower clients.lr"
            )
        log.warning("round %d: left out clients %s: loss or delta not finite", round_, names)

    # The server's step, and what clients are to hold of it.
    if work:
        exchanged.mean_delta.mul_(mean_work(work, cohort, exchanged.accepted))
    if _steps_here(parties):
        if masks:
            masks.step(round_, server, exchanged.mean_delta, exchanged.gathered, len(exchanged.accepted))
        else:
            server.step(round_, exchanged.mean_delta, len(exchanged.accepted))
    if masks:
        masks.remember(exchanged.accepted, exchanged.gathered)
    server.buffers.add_(exchanged.mean_buffer_delta)
    _publish(round_, parties)
    payloads = 2 if controls else 1
    report = federated_report(
        round_, exchanged, payloads, payloads * downlink_bytes, server.buffers.numel(), world.traffic, watch.totals()
    )
    if masks:
        residuals = sum(world.largest([float(count) for count in dropped.values()]))
        report |= masks.report(server.parameters.data, exchanged.gathered) | {"dropped_residuals": int(residuals)}
    return report


def _steps_here(parties: Parties) -> bool:
    """Rank 0 is the server; where its step is stateless and not compressed again, all ranks take it themselves."""
    return parties.world.rank == 0 or (parties.server.is_stateless and parties.downlink.is_lossless)


def _publish(round_: int, parties: Parties) -> None:
    """Bring the view of the new global parameters to all ranks; those that took the step themselves have it."""
    world, downlink, masks = parties.world, parties.downlink, parties.masks
    if downlink.is_lossless:
        if not parties.server.is_stateless:
            world.broadcast_(downlink.parameters)
            if masks and masks.server_moves_in(round_):
                masks.adopt(world.broadcast_(masks.published()))
    else:
        blank = torch.empty(downlink.message_nbytes(), dtype=torch.uint8, device=world.device)
        downlink.receive(world.broadcast_(downlink.encode() if world.rank == 0 else blank))
    downlink.finish_round(round_)


def centralised_round(round_: int, config: Config, parties: Parties) -> dict[str, Any]:
    """Passes over the pooled data on rank 0, with an optimizer that keeps its state; the other ranks wait."""
    world, trainer, server = parties.world, parties.trainer, parties.server
    watch = Stopwatch(world)
    train_loss = 0.0
    if world.rank == 0:
        with watch.phase("compute"):
            trainer.model.load(server.parameters.data, server.buffers)
            train_loss = trainer.run_steps(0, round_, parties.partition[0])
            server.parameters.data.copy_(trainer.model.parameters)
            server.buffers.copy_(trainer.model.buffers)
    world.wait_for_all()
    if not world.all_true(math.isfinite(train_loss)):
        raise DivergedError(f"round {round_}: the training loss of the pooled data is not finite")
    return centralised_report(round_, train_loss, watch.totals())


ROUNDS = {"federated": federated_round, "gradient": gradient_round, "centralised": centralised_round}
