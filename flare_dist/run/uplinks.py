"""How a round's updates travel: the uplink that its cohort shares, and of sparse models which weights there are."""

from __future__ import annotations

import math
from dataclasses import replace

from torch import Tensor

from flare_dist.clients.client import ClientResult
from flare_dist.clients.objectives import control_change, feddyn_memory
from flare_dist.comm.exchange import Cohort, DenseUplink, Exchanged, SparseUplink
from flare_dist.compression.error_feedback import State
from flare_dist.compression.payload import Payload
from flare_dist.run.config import Config
from flare_dist.run.parties import Parties
from flare_dist.server.aggregation import Receive, mean
from flare_dist.server.masks import Assignment
from flare_dist.sparse_training.masks import drop_outside

CONTROL_PREFIX = "control_"  # of what a client remembers for error feedback on the change of its control variate


def open_uplink(
    round_: int, config: Config, cohort: Cohort, assigned: dict[int, Assignment], parties: Parties, steps_here: bool
) -> DenseUplink | SparseUplink:
    """The uplink of the round's model deltas; only a rank that steps the server, `steps_here`, adds up a gather."""
    if not parties.masks:
        return _open(
            round_, config, cohort, parties, parties.server.receive, steps_here, parties.server.buffers.numel()
        )
    server, compressor = parties.server, parties.compressor
    sizes = server.parameters.numel(), server.buffers.numel()
    common = next((a.form for a in assigned.values() if a.form.is_common), None)
    if config.compression.is_dense and common:
        return DenseUplink(cohort, server.receive, *sizes, parties.world.device, common.active)
    forms = {client: assignment.form for client, assignment in assigned.items()}
    most = parties.masks.most_nbytes(round_, assigned, compressor)
    receive: Receive = server.receive if steps_here else _leave_to_rank_0
    return SparseUplink(cohort, receive, *sizes, forms, most, masks_differ=not common)


def _open(
    round_: int, config: Config, cohort: Cohort, parties: Parties, receive: Receive, adds_here: bool, buffers: int
) -> DenseUplink | SparseUplink:
    """Sums of each rank where payloads are dense, otherwise a gather of them all; `buffers` entries go with each."""
    sizes = parties.server.parameters.numel(), buffers
    if config.compression.is_dense:
        return DenseUplink(cohort, receive, *sizes, parties.world.device)
    packing, most = parties.compressor.plan(round_).packing, parties.compressor.plan(round_).max_kept
    gathers = receive if adds_here else _leave_to_rank_0
    return SparseUplink(cohort, gathers, *sizes, dict.fromkeys(cohort.hosts, packing), packing.most_nbytes(most))


class ControlUplink:
    """The second payload of SCAFFOLD: the changes of the clients' control variates, with a residual of their own.

    Every rank adds them up, because the clients on it need the server's control variate.
    """

    def __init__(self, round_: int, config: Config, cohort: Cohort, parties: Parties) -> None:
        self.round = round_
        self.config = config
        self.parties = parties
        even = Cohort(cohort.hosts, dict.fromkeys(cohort.hosts, 1 / len(cohort.hosts)))
        self.uplink = _open(round_, config, even, parties, _add, True, 0)

    def add(self, result: ClientResult, state: State) -> None:
        """Move a client's control variate, and send by how much."""
        steps = self.config.clients.steps_with(result.num_examples)
        change = control_change(state, result.model_delta, steps, self.parties.trainer.lr(self.round))
        names = self.parties.compressor.state_names
        own = {name: state[CONTROL_PREFIX + name] for name in names}
        payload = self.parties.compressor.compress(self.round, result.client, change, own)
        self.uplink.add(self._envelope(result, change), payload)

    def reject(self, result: ClientResult) -> None:
        self.uplink.reject(self._envelope(result, result.model_delta))

    def _envelope(self, result: ClientResult, change: Tensor) -> ClientResult:
        return replace(result, model_delta=change, buffer_delta=change.new_empty(0))

    def exchange(self, exchanged: Exchanged) -> Exchanged:
        """Step the server's control variate, c <- c + (1 / N) * the sum of the changes; the bytes of both payloads."""
        control = self.parties.server.control
        assert control is not None
        controls = self.uplink.exchange(self.parties.world)
        control.add_(controls.mean_delta, alpha=len(controls.accepted) / self.config.clients.num)
        return replace(
            exchanged,
            kept=exchanged.kept + controls.kept,
            uplink_bytes=exchanged.uplink_bytes + controls.uplink_bytes,
        )


def _add(total: Tensor, client: int, payload: Payload, weight: float) -> None:
    """The weighted sum, whatever the server makes of model deltas."""
    mean(total, payload, weight)


def _leave_to_rank_0(total: Tensor, client: int, payload: Payload, weight: float) -> None:
    """A server whose step needs memory has it on rank 0 only, and sends the new parameters back."""


def assign_masks(round_: int, config: Config, drawn: list[int], parties: Parties) -> dict[int, Assignment]:
    """What of a sparse model each client trains; nothing where models are dense."""
    if not parties.masks:
        return {}
    sizes = {client: len(parties.partition[client]) for client in drawn}
    steps = {c: (config.clients.steps_with(size), config.clients.epoch_steps(size)) for c, size in sizes.items()}
    return parties.masks.assign(round_, steps, parties.server.parameters.data, parties.compressor)


def local_work(round_: int, config: Config, drawn: list[int], parties: Parties) -> dict[int, float]:
    """How many gradients' worth of steps each client takes, for fednova; nothing otherwise."""
    if config.server.aggregator != "fednova":
        return {}
    clients, lr = config.clients, parties.trainer.lr(round_)
    return {c: clients.local_weight(clients.steps_with(len(parties.partition[c])), lr) for c in drawn}


def mean_work(work: dict[int, float], cohort: Cohort, accepted: list[int]) -> float:
    """tau_eff of FedNova (Wang et al. 2020): sum of p_k * ||a_k||_1 over the clients that were accepted."""
    present = math.fsum(cohort.weights[client] for client in accepted)
    return math.fsum(cohort.weights[client] * work[client] for client in accepted) / present


def remember(config: Config, state: State, result: ClientResult) -> None:
    """What a client keeps of a round for FedDyn."""
    if config.clients.objective == "feddyn":
        feddyn_memory(config.clients, state, result.model_delta)


def forget_outside(mask: Tensor | None, state: State) -> int:
    """Drop what a client remembers of weights that are not in its mask; returns how many entries that were."""
    return 0 if mask is None else drop_outside(list(state.values()), mask)
