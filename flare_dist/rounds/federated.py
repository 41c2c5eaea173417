"""One round, in the order data moves: cohort, local training, compression, exchange, server step.

Every rank runs these functions with the same arguments, except that each hosts its own share of the clients.
"""

from __future__ import annotations

import logging
from typing import Any

import torch

from flare_dist.clients.state import hosting_ranks
from flare_dist.comm.exchange import Cohort
from flare_dist.config.config import Config
from flare_dist.rounds.ledger import Stopwatch, federated_report
from flare_dist.rounds.parties import DivergedError, Parties
from flare_dist.rounds.uplinks import RoundUplink
from flare_dist.server.aggregation import cohort_weights
from flare_dist.server.server import sample_cohort

log = logging.getLogger(__name__)


def federated_round(round_: int, config: Config, parties: Parties) -> dict[str, Any]:
    """Train the cohort, exchange its updates and step the server; returns the round's report."""
    world, server, masks = parties.world, parties.server, parties.masks
    watch = Stopwatch(world)

    # The cohort and its hosts follow from the seed, so every rank knows them.
    drawn = sample_cohort(config.seed, round_, config.clients.num, config.clients.cohort_size)
    cohort = Cohort(
        hosting_ranks(drawn, world.size, stateful=bool(parties.states.names)),
        cohort_weights(drawn, parties.partition.sizes, config.clients.weighting),
    )
    uplink = RoundUplink(round_, config, cohort, parties)
    downlink_bytes = uplink.downlink_nbytes()

    # Local training and compression of the clients on this rank.
    train_hosted = _train_as_one_batch if parties.batched else _train_one_after_another
    train_hosted(round_, cohort.hosted_by(world.rank), uplink, parties, watch)

    # The exchange: afterwards every rank that steps the server holds the same mean delta.
    world.wait_for_all()
    exchanged = uplink.exchange()
    if exchanged.rejected:
        names = ", ".join(map(str, exchanged.rejected))
        if not exchanged.accepted:
            raise DivergedError(
                f"round {round_}: the losses or deltas of all clients ({names}) are not finite; try a lower clients.lr"
            )
        log.warning("round %d: left out clients %s: loss or delta not finite", round_, names)

    # The server's step, and what clients are to hold of it.
    algorithm, senders = parties.trainer.algorithm, uplink.senders(exchanged.accepted)
    if parties.steps_here:
        if masks:
            masks.to_mean_of_models(exchanged.mean_vector, server.parameters.data, exchanged.gathered)
        algorithm.after_wire(exchanged.mean_delta, server.memory, senders)
        server.step(round_, exchanged.mean_delta)
        if masks:
            masks.settle(round_, server, exchanged.gathered, exchanged.squares)
    algorithm.after_round(exchanged.beside, server.told, senders)
    if masks:
        masks.remember(exchanged.accepted, exchanged.gathered)
    server.buffers.add_(exchanged.mean_buffer_delta)
    _publish(round_, parties)
    traffic, seconds = world.traffic, watch.totals()
    report = federated_report(
        round_, exchanged, len(algorithm.sends), downlink_bytes, server.buffers.numel(), traffic, seconds
    )
    if masks:
        report |= masks.report(server.parameters.data, exchanged.gathered, exchanged.mask_bytes)
        report["dropped_residuals"] = uplink.dropped_in_all()
    return report


def _train_one_after_another(
    round_: int, hosted: list[int], uplink: RoundUplink, parties: Parties, watch: Stopwatch
) -> None:
    """Train each client and put what it brings back on the uplink."""
    view, buffers = parties.downlink.view, parties.server.buffers
    for client in hosted:
        with parties.states.lend(client) as state, watch.client():
            with watch.phase("compute"):
                learner = uplink.prepare(client, state)
                examples = parties.partition[client]
                result = parties.trainer.train(
                    client, round_, examples, view, buffers, state, learner, parties.server.told
                )
            with watch.phase("select"):
                uplink.add(result, state)


def _train_as_one_batch(
    round_: int, hosted: list[int], uplink: RoundUplink, parties: Parties, watch: Stopwatch
) -> None:
    """The same for clients whose training needs nothing of what they remember, many at a time."""
    assert parties.batched is not None
    view, buffers = parties.downlink.view, parties.server.buffers
    for group in parties.batched.groups(hosted, parties.partition):
        with watch.phase("compute"):
            results = parties.batched.train(group, round_, parties.partition, view, buffers)
        with watch.phase("select"):
            for result in results:
                with parties.states.lend(result.client) as state:
                    uplink.add(result, state)


def _publish(round_: int, parties: Parties) -> None:
    """Bring the view of the new global parameters to all ranks; those that took the step themselves have it."""
    world, downlink, masks = parties.world, parties.downlink, parties.masks
    if downlink.is_lossless:
        if not parties.server.is_plain:
            world.broadcast_(downlink.parameters)
            if masks and masks.schedule.server_moves_in(round_):
                masks.adopt(world.broadcast_(masks.published()))
    else:
        blank = torch.empty(downlink.message_nbytes(), dtype=torch.uint8, device=world.device)
        downlink.receive(world.broadcast_(downlink.encode() if world.rank == 0 else blank))
    downlink.finish_round(round_)
