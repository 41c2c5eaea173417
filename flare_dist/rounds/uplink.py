"""The uplink of a round: what each client sends, the mean of it, and the server's step on the mean.

An algorithm decides what a client sends: its model delta, and other payloads beside it with a residual of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from flare_dist.algorithms.algorithm import Senders, Trained
from flare_dist.clients.client import ClientResult
from flare_dist.comm.cohort import Cohort
from flare_dist.comm.exchange import DenseUplink, Received, SparseUplink
from flare_dist.compression.compressor import Compressor
from flare_dist.compression.error_feedback import State
from flare_dist.compression.payload import Payload
from flare_dist.rounds.federation import Federation
from flare_dist.server.aggregation import DeltaSum, Receive, mean
from flare_dist.sparse_training.local_mask import LocalMask

Compress = Callable[[int, int, Tensor, State], Payload]  # (round, client, vector, the client's memory)


def memory_names(compressor: Compressor, payload: str) -> dict[str, str]:
    """Map the names that a rule of error feedback uses to those that a client remembers for one of its payloads."""
    prefix = "" if payload == "delta" else f"{payload}_"
    return {name: prefix + name for name in compressor.state_names}


class Uplink(Protocol):
    """One round's way up, in the order of its calls; every rank calls them alike."""

    def downlink_nbytes(self) -> int:
        """Count what a star sends to the cohort before it trains; call it once."""

    def local_mask(self, client: int, memory: State) -> LocalMask | None:
        """Prepare a client's memory for its training, and open the mask that it trains under, if there is one."""

    def add(self, result: ClientResult, memory: State) -> None:
        """Send what a client brings back, and keep in `memory` what it remembers."""

    def exchange(self) -> Received:
        """Return the mean of what the cohort sent; every rank that steps the server holds it afterwards."""

    def step(self, received: Received) -> None:
        """Take the server's step, on the ranks that take it, and move what every rank remembers."""

    def row(self, received: Received) -> dict[str, Any]:
        """Return what the round's row reports of the models, beside what it reports of every round."""


class WholeUplink:
    """The uplink of models all of whose weights are trained; `deltas` and `compress` may be those of sparse models."""

    senders: Senders  # from the exchange on

    def __init__(
        self,
        round_: int,
        cohort: Cohort,
        fed: Federation,
        deltas: DenseUplink | SparseUplink | None = None,
        compress: Compress | None = None,
    ) -> None:
        server = fed.server
        self.round = round_
        self.cohort = cohort
        self.fed = fed
        self.algorithm = fed.clients.trainer.algorithm
        clients = fed.clients
        self.works = {client: clients.trainer.work(round_, clients.partition.sizes[client]) for client in cohort.hosts}
        self.compress = compress or fed.compressor.compress
        self.deltas = deltas or open_payloads(round_, cohort, fed, server.receive, server.buffers.numel())
        beside = [name for name in self.algorithm.sends if name != "delta"]
        self.beside = {name: _open_beside(round_, cohort, fed) for name in beside}

    def downlink_nbytes(self) -> int:
        """Count what a star sends to the cohort: the view, and the vectors that the algorithm tells."""
        vectors = 1 + len(self.fed.server.told)
        return vectors * self.fed.downlink.nbytes_to(list(self.cohort.hosts), self.round)

    def local_mask(self, client: int, memory: State) -> None:
        """Train every weight."""

    def add(self, result: ClientResult, memory: State) -> None:
        """Compress what a client brings back; a client whose training is not finite sends and remembers nothing."""
        if not result.is_finite:
            for payloads in (self.deltas, *self.beside.values()):
                payloads.add(result, None)
            return
        client = result.client
        trained = Trained(result.model_delta, self.works[client])
        vectors = self.algorithm.before_wire(trained, memory, self.fed.server.told)
        for name, payloads in self.beside.items():
            own = {kind: memory[kept] for kind, kept in memory_names(self.fed.compressor, name).items()}
            payloads.add(_alone(result), self.fed.compressor.compress(self.round, client, vectors[name], own))
        self.deltas.add(result, self.compress(self.round, client, vectors["delta"], memory))

    def exchange(self) -> Received:
        """Gather each kind of payload; all ranks call it together."""
        received = self.deltas.exchange(self.fed.world)
        for name, payloads in self.beside.items():
            received = received.with_payload(name, payloads.exchange(self.fed.world))
        weights = {client: self.cohort.weights[client] for client in received.accepted}
        self.senders = Senders(self.works, weights, len(self.fed.clients.partition.sizes))
        return received

    def step(self, received: Received) -> None:
        """Step the server as the algorithm makes it of the mean delta; every rank moves what clients are told."""
        server = self.fed.server
        if self.fed.steps_here:
            self.algorithm.after_wire(received.mean_delta, server.memory, self.senders)
            server.step(self.round, received.mean_delta)
        self.algorithm.after_round(received.beside, server.told, self.senders)
        server.buffers.add_(received.mean_buffer_delta)

    def row(self, received: Received) -> dict[str, Any]:
        """Report nothing of masks."""
        return {}


def open_payloads(
    round_: int, cohort: Cohort, fed: Federation, receive: Receive, buffers: int, everywhere: bool = False
) -> DenseUplink | SparseUplink:
    """Open the exchange of one payload a client, `buffers` entries of the model's buffers with each.

    Dense payloads are summed by each rank before the wire. Sparse ones are gathered, and added up by the ranks that
    step the server, or `everywhere`.
    """
    server = fed.server
    if fed.compressor.is_dense:
        return DenseUplink(cohort, receive, server.parameters.numel(), buffers, fed.world.device)
    plan = fed.compressor.plan(round_)
    most = plan.max_kept
    delta_sum = torch.zeros_like(server.parameters.data) if everywhere else server.new_sum(most * len(cohort.hosts))
    encodings = dict.fromkeys(cohort.hosts, plan.packing)
    received = receive if everywhere or fed.steps_here else leave_to_rank_0
    return SparseUplink(cohort, received, delta_sum, buffers, encodings, plan.packing.most_nbytes(most))


def _open_beside(round_: int, cohort: Cohort, fed: Federation) -> DenseUplink | SparseUplink:
    """Open the exchange of a payload beside the delta, of which clients count alike.

    Every rank adds it up, because the clients on it need what the algorithm makes of it.
    """
    even = Cohort(cohort.hosts, dict.fromkeys(cohort.hosts, 1 / len(cohort.hosts)))
    return open_payloads(round_, even, fed, _add, 0, everywhere=True)


def _add(total: DeltaSum, client: int, payload: Payload, weight: float) -> None:
    """Add one payload to a weighted sum."""
    mean(total, payload, weight)


def leave_to_rank_0(total: DeltaSum, client: int, payload: Payload, weight: float) -> None:
    """Add nothing: a server whose step needs memory keeps it on rank 0, which sends the new parameters back."""


def _alone(result: ClientResult) -> ClientResult:
    """Strip the model's buffers, which go with the delta, for another payload of a client."""
    return replace(result, buffer_delta=result.buffer_delta.new_empty(0))
