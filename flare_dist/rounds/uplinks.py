"""How a round's updates travel: what each client puts on the uplink, and the mean that comes of it.

An algorithm decides what each client sends: its model delta, and other payloads beside it with a residual of their own.
Of sparse models the active weights alone are sent.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from flare_dist.algorithms.algorithm import Senders, Trained
from flare_dist.clients.client import ClientResult
from flare_dist.comm.exchange import Cohort, Exchanged, mean_in_order
from flare_dist.comm.uplink import DenseUplink, SparseUplink
from flare_dist.compression.compressor import Compressor
from flare_dist.compression.error_feedback import State
from flare_dist.compression.payload import WORD, Payload
from flare_dist.config.config import Config
from flare_dist.rounds.parties import Parties
from flare_dist.server.aggregation import DeltaSum, Receive, mean
from flare_dist.server.masks import Assignment, Masks
from flare_dist.sparse_training.learner import SparseLearner
from flare_dist.sparse_training.masks import drop_outside, layers_of, sizes


def feedback_names(compressor: Compressor, payload: str) -> dict[str, str]:
    """Name what a client remembers for error feedback on one of its payloads, by the names that a rule uses."""
    prefix = "" if payload == "delta" else f"{payload}_"
    return {name: prefix + name for name in compressor.state_names}


class RoundUplink:
    """The uplink of one round: `prepare` each hosted client, `add` what it brings back, `exchange`.

    Only a rank that steps the server adds up the payloads that it gathers.
    """

    def __init__(self, round_: int, config: Config, cohort: Cohort, parties: Parties) -> None:
        self.round = round_
        self.config = config
        self.cohort = cohort
        self.parties = parties
        self.dropped = dict.fromkeys(cohort.hosts, 0)  # entries of each client's memory that lay outside its mask
        self.assigned = _assign_masks(round_, config, cohort, parties)
        self._squares: dict[int, Tensor] = {}  # of the clients on this rank, where the server asks for them
        self.algorithm = parties.trainer.algorithm
        self._works = {c: parties.trainer.work(round_, parties.partition.sizes[c]) for c in cohort.hosts}
        beside = [name for name in self.algorithm.sends if name != "delta"]
        self._beside = {name: _open_beside(round_, config, cohort, parties) for name in beside}
        if parties.masks:
            self._uplink = _open_masked(round_, config, cohort, self.assigned, parties)
        else:
            server = parties.server
            self._uplink = _open(round_, config, cohort, parties, server.receive, server.buffers.numel())

    def downlink_nbytes(self) -> int:
        """Count what a star sends to the cohort before it trains; call it once."""
        if self.parties.masks:
            return self.parties.masks.downlink_nbytes(self.assigned)
        vectors = 1 + len(self.algorithm.told)
        return vectors * self.parties.downlink.nbytes_to(list(self.cohort.hosts), self.round)

    def prepare(self, client: int, state: State) -> SparseLearner | None:
        """What a client trains with, besides its memory `state`, which is made ready for it."""
        if not self.parties.masks:
            return None
        learner = self.parties.masks.learner(self.round, client, self.assigned[client])
        self.dropped[client] = drop_outside(list(state.values()), learner.mask)  # of what the server has pruned
        return learner

    def add(self, result: ClientResult, state: State) -> None:
        """Send what a client brings back, and keep in `state` what it remembers; nothing of what is not finite."""
        if not result.is_finite:
            self._uplink.reject(result)
            for beside in self._beside.values():
                beside.reject(_alone(result))
            return
        trained = Trained(result.model_delta, self._works[result.client])
        payloads = self.algorithm.before_wire(trained, state, self.parties.server.told)
        for name, beside in self._beside.items():
            own = {kind: state[kept] for kind, kept in feedback_names(self.parties.compressor, name).items()}
            payload = self.parties.compressor.compress(self.round, result.client, payloads[name], own)
            beside.add(_alone(result), payload)
        if result.squares is not None:
            self._squares[result.client] = result.squares
        form = None
        if result.mask is not None:
            form = self.assigned[result.client].form
            self.dropped[result.client] += drop_outside(list(state.values()), result.mask)  # of what it has pruned
        compress = self.parties.compressor.compress
        payload = compress(self.round, result.client, payloads["delta"], state, form, result.mask)
        self._uplink.add(result, payload)

    def exchange(self) -> Exchanged:
        """The mean of what the cohort has sent; all ranks call it together."""
        exchanged = self._uplink.exchange(self.parties.world)
        for name, uplink in self._beside.items():
            exchanged = exchanged.with_payload(name, uplink.exchange(self.parties.world))
        if self.parties.masks and self.parties.masks.schedule.measures_in(self.round):
            exchanged = self._exchange_squares(self.parties.masks, exchanged)
        return exchanged

    def senders(self, accepted: list[int]) -> Senders:
        """Tell the algorithm whose payloads were accepted."""
        weights = {client: self.cohort.weights[client] for client in accepted}
        return Senders(self._works, weights, self.config.clients.num)

    def _exchange_squares(self, masks: Masks, exchanged: Exchanged) -> Exchanged:
        """The mean of the squared gradients of the prunable weights, which clients send in float32."""
        cohort = Cohort(self.cohort.hosts, {client: self.cohort.weights[client] for client in exchanged.accepted})
        entries = masks.entries
        own = {client: torch.cat(list(layers_of(squares, entries))) for client, squares in self._squares.items()}
        mean, _ = mean_in_order(self.parties.world, cohort, own, sum(sizes(entries)))
        if mean is None:
            return exchanged
        squares = mean.new_zeros(masks.total)
        for layer, part in zip(layers_of(squares, entries), mean.split(sizes(entries))):
            layer.copy_(part)
        sent = WORD * mean.numel() * len(exchanged.accepted)
        return replace(exchanged, squares=squares, uplink_bytes=exchanged.uplink_bytes + sent, mask_bytes=sent)

    def dropped_in_all(self) -> int:
        """The sum of `dropped` over the ranks, which call it together: a client's count is 0 but on its host."""
        return int(sum(self.parties.world.largest([float(count) for count in self.dropped.values()])))


def _alone(result: ClientResult) -> ClientResult:
    """Address another payload of a client; the model's buffers go with its delta."""
    return replace(result, buffer_delta=result.buffer_delta.new_empty(0))


def _open_beside(round_: int, config: Config, cohort: Cohort, parties: Parties) -> DenseUplink | SparseUplink:
    """Open the uplink of another payload than the delta, of which clients count alike.

    Every rank adds it up, because the clients on it need what the algorithm makes of it.
    """
    even = Cohort(cohort.hosts, dict.fromkeys(cohort.hosts, 1 / len(cohort.hosts)))
    return _open(round_, config, even, parties, _add, 0, everywhere=True)


def _open(
    round_: int,
    config: Config,
    cohort: Cohort,
    parties: Parties,
    receive: Receive,
    buffers: int,
    everywhere: bool = False,
) -> DenseUplink | SparseUplink:
    """Sums of each rank where payloads are dense, otherwise a gather of them all; `buffers` entries go with each.

    What is gathered is added up where the server steps, or `everywhere`.
    """
    server = parties.server
    if config.compression.is_dense:
        return DenseUplink(cohort, receive, server.parameters.numel(), buffers, parties.world.device)
    packing, most = parties.compressor.plan(round_).packing, parties.compressor.plan(round_).max_kept
    gathers = receive if everywhere or parties.steps_here else _leave_to_rank_0
    delta_sum = torch.zeros_like(server.parameters.data) if everywhere else server.new_sum(most * len(cohort.hosts))
    forms = dict.fromkeys(cohort.hosts, packing)
    return SparseUplink(cohort, gathers, delta_sum, buffers, forms, packing.most_nbytes(most))


def _open_masked(
    round_: int, config: Config, cohort: Cohort, assigned: dict[int, Assignment], parties: Parties
) -> DenseUplink | SparseUplink:
    """The same for the active weights of sparse models, of which sums need one mask for all."""
    assert parties.masks is not None
    server, compressor = parties.server, parties.compressor
    total, buffers = server.parameters.numel(), server.buffers.numel()
    common = next((a.form for a in assigned.values() if a.form.is_common), None)
    if config.compression.is_dense and common:
        return DenseUplink(cohort, server.receive, total, buffers, parties.world.device, common.active)
    forms = {client: assignment.form for client, assignment in assigned.items()}
    most = parties.masks.most_nbytes(round_, assigned, compressor)
    gathers: Receive = server.receive if parties.steps_here else _leave_to_rank_0
    delta_sum = torch.zeros_like(server.parameters.data)
    return SparseUplink(cohort, gathers, delta_sum, buffers, forms, most, masks_differ=not common)


def _add(total: DeltaSum, client: int, payload: Payload, weight: float) -> None:
    """The weighted sum, whatever the server makes of model deltas."""
    mean(total, payload, weight)


def _leave_to_rank_0(total: DeltaSum, client: int, payload: Payload, weight: float) -> None:
    """A server whose step needs memory has it on rank 0 only, and sends the new parameters back."""


def _assign_masks(round_: int, config: Config, cohort: Cohort, parties: Parties) -> dict[int, Assignment]:
    """What of a sparse model each client trains; nothing where models are dense."""
    if not parties.masks:
        return {}
    sizes = {client: len(parties.partition[client]) for client in cohort.hosts}
    steps = {c: (config.clients.steps_with(size), config.clients.epoch_steps(size)) for c, size in sizes.items()}
    return parties.masks.assign(round_, steps, parties.server.parameters.data, parties.compressor)
