"""How a round's updates travel: the uplink that its cohort shares, and of sparse models which weights there are."""

from __future__ import annotations

import math

from torch import Tensor

from flare_dist.clients.client import ClientResult
from flare_dist.clients.objectives import MEMORIES
from flare_dist.comm.exchange import Cohort, DenseUplink, SparseUplink
from flare_dist.compression.error_feedback import State
from flare_dist.compression.payload import Payload
from flare_dist.run.config import Config
from flare_dist.run.parties import Parties
from flare_dist.server.aggregation import Receive
from flare_dist.server.masks import Assignment
from flare_dist.sparse_training.masks import drop_outside


def open_uplink(
    round_: int, config: Config, cohort: Cohort, assigned: dict[int, Assignment], parties: Parties, steps_here: bool
) -> DenseUplink | SparseUplink:
    """Sums of each rank where payloads are dense and of the same entries, otherwise a gather of them all.

    Only a rank that steps the server, `steps_here`, adds up what it gathers.
    """
    server, compressor = parties.server, parties.compressor
    sizes = server.parameters.numel(), server.buffers.numel()
    common = next((a.form for a in assigned.values() if a.form.is_common), None)
    if config.compression.is_dense and (common or not assigned):
        active = common.active if common else None
        return DenseUplink(cohort, server.receive, *sizes, parties.world.device, active)
    receive: Receive = server.receive if steps_here else _leave_to_rank_0
    if not parties.masks:
        packing, most = compressor.plan(round_).packing, compressor.plan(round_).max_kept
        return SparseUplink(cohort, receive, *sizes, dict.fromkeys(cohort.hosts, packing), packing.most_nbytes(most))
    forms = {client: assignment.form for client, assignment in assigned.items()}
    most = parties.masks.most_nbytes(round_, assigned, compressor)
    return SparseUplink(cohort, receive, *sizes, forms, most, masks_differ=not common)


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
    """What a client keeps of a round for its objective."""
    if config.clients.objective in MEMORIES:
        MEMORIES[config.clients.objective].update(config.clients, state, result.model_delta)


def forget_outside(mask: Tensor | None, state: State) -> int:
    """Drop what a client remembers of weights that are not in its mask; returns how many entries that were."""
    return 0 if mask is None else drop_outside(list(state.values()), mask)
