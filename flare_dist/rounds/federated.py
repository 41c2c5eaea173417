"""One federated round, in the order data moves: cohort, local training, compression, exchange, server step.

Every rank runs these functions with the same arguments, except that each hosts its own share of the clients.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch

from flare_dist.clients.batched import BatchedTrainer
from flare_dist.clients.client import ClientResult
from flare_dist.clients.hosting import hosting_ranks
from flare_dist.comm.cohort import Cohort
from flare_dist.comm.exchange import Received
from flare_dist.compression.error_feedback import State
from flare_dist.rounds.diverged import DivergedError
from flare_dist.rounds.federation import Federation
from flare_dist.rounds.ledger import Stopwatch, federated_report, participants_report
from flare_dist.rounds.uplink import Uplink
from flare_dist.server.aggregation import cohort_weights
from flare_dist.server.server import sample_cohort

log = logging.getLogger(__name__)


def federated_round(round_: int, fed: Federation) -> dict[str, Any]:
    """Train the cohort, exchange its updates and step the server; returns the round's row."""
    watch = Stopwatch(fed.world)
    cohort = draw(round_, fed)
    uplink: Uplink = fed.open_uplink(round_, cohort, fed)
    downlink_bytes = uplink.downlink_nbytes()

    for result, memory in train(round_, cohort, uplink, fed, watch):
        with watch.phase("select", result.client):
            uplink.add(result, memory)

    fed.world.wait_for_all()
    received = uplink.exchange()
    check_finite(round_, received)
    uplink.step(received)
    publish(round_, fed)
    report = federated_report(round_, received, downlink_bytes, fed, watch)
    return report | participants_report(round_, received, fed, watch) | uplink.row(received)


def draw(round_: int, fed: Federation) -> Cohort:
    """Draw the clients of a round, and their hosts and weights; the seed decides, so every rank knows them."""
    clients = fed.config.clients
    sizes = fed.clients.partition.sizes
    drawn = sample_cohort(fed.config.seed, round_, len(sizes), fed.clients.cohort_size)
    hosts = hosting_ranks(drawn, fed.world.hosts, stateful=bool(fed.clients.states.names))
    return Cohort(hosts, cohort_weights(drawn, sizes, clients.weighting))


def train(
    round_: int, cohort: Cohort, uplink: Uplink, fed: Federation, watch: Stopwatch
) -> Iterator[tuple[ClientResult, State]]:
    """Train the clients hosted here; yields what each brings back, and its memory while it may be changed."""
    clients = fed.clients
    server = fed.server
    hosted = [client for client, rank in cohort.hosts.items() if rank == fed.world.host_number]
    if clients.batched:
        yield from _train_as_one_batch(clients.batched, round_, hosted, fed, watch)
        return
    for client in hosted:
        with clients.states.lend(client) as memory:
            with watch.phase("compute", client):
                mask = uplink.local_mask(client, memory)
                examples = clients.partition[client]
                result = clients.trainer.train(
                    client, round_, examples, fed.view, server.buffers, memory, mask, server.told
                )
            if clients.personal and clients.personal.is_due(round_):
                clients.personal.measure(client)
            yield result, memory


def _train_as_one_batch(
    batched: BatchedTrainer, round_: int, hosted: list[int], fed: Federation, watch: Stopwatch
) -> Iterator[tuple[ClientResult, State]]:
    """Train clients whose training needs nothing of what they remember, many at a time."""
    clients = fed.clients
    server = fed.server
    for group in batched.groups(hosted, clients.partition):
        with watch.phase("compute"):
            results = batched.train(group, round_, clients.partition, fed.view, server.buffers)
        for result in results:
            if clients.personal and clients.personal.is_due(round_):
                fed.model.load(fed.view + result.model_delta, server.buffers + result.buffer_delta)
                clients.personal.measure(result.client)
            with clients.states.lend(result.client) as memory:
                yield result, memory


def check_finite(round_: int, received: Received) -> None:
    """Warn of clients that were left out; raises DivergedError on every rank if none is left."""
    if not received.rejected:
        return
    names = ", ".join(map(str, received.rejected))
    if not received.accepted:
        raise DivergedError(
            f"round {round_}: the losses or deltas of all clients ({names}) are not finite; try a lower clients.lr"
        )
    log.warning("round %d: left out clients %s: loss or delta not finite", round_, names)


def publish(round_: int, fed: Federation) -> None:
    """Bring the view of the new global parameters to all ranks; those that took the step themselves have it."""
    world = fed.world
    downlink = fed.downlink
    if not downlink.is_lossless:
        blank = torch.empty(downlink.message_nbytes(), dtype=torch.uint8, device=world.device)
        downlink.receive(world.broadcast_(downlink.encode() if world.host_number == 0 else blank))
    elif not fed.server.is_plain:
        world.broadcast_(downlink.parameters)
    downlink.finish_round(round_)
