"""The exchange: every rank's client updates in, the cohort's weighted mean out, in one collective.

Sparse: payloads of index/value pairs, packed into one padded buffer a rank, travel in one all-gather (several for a
large cohort); every rank decodes them and sums in client order, so the bits do not depend on who hosted whom.
Dense: a rank adds up its own clients first, and one all-reduce sums the ranks; no copies of the model are gathered.
Both carry the buffers of the model and each client's training loss along.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flare_dist.comm.distributed import World
from flare_dist.compression.error_feedback import State
from flare_dist.compression.payload import Payload, decode, encode, max_nbytes, rejected
from flare_dist.server.aggregation import accepted_weights, weighted_mean

Cohort = Sequence[tuple[int, int]]  # (client, hosting rank), ascending
Compress = Callable[[int, Tensor, State], tuple[Tensor, Tensor]]

ALIGNMENT = 512  # NCCL is several times slower on odd sizes
GATHER_LIMIT = 64 * 2**20  # bytes a rank contributes to one gather; larger cohorts go in several


@dataclass(frozen=True)
class Exchanged:
    """What every rank knows after an exchange: the means over the accepted clients, and what was sent for them."""

    mean_delta: Tensor  # float32 [total]
    mean_buffers: Tensor  # float32 [b]
    accepted: list[int]  # clients, ascending
    rejected: list[int]
    train_loss: float  # mean of the accepted clients' training losses, weighted like their deltas
    kept: int  # entries in all payloads
    uplink_bytes: int  # encoded payloads, before padding, without buffers


class SparseUplink:
    """Collects the payloads of this rank's clients and exchanges them.

    `cohort` lists (client, hosting rank) in ascending client order; `compress` is (client, model_delta, state) ->
    (indices, values), at most `max_kept` of them.
    """

    def __init__(
        self,
        cohort: Cohort,
        weights: dict[int, float],
        total: int,
        buffers: int,
        device: torch.device,
        compress: Compress,
        max_kept: int,
    ) -> None:
        self.cohort = cohort
        self.weights = weights
        self.total = total
        self.buffers = buffers
        self.device = device
        self.compress = compress
        self.max_kept = max_kept
        self.payloads: dict[int, Payload] = {}

    def add(self, client: int, train_loss: float, model_delta: Tensor, buffers: Tensor, state: State) -> None:
        """Compress one client's delta; its memory `state` takes what is not sent."""
        indices, values = self.compress(client, model_delta, state)
        self.payloads[client] = Payload(client, train_loss, indices.int(), values, buffers.clone())

    def reject(self, client: int, train_loss: float) -> None:
        """Leave one client out of the round; its memory stays as it was."""
        self.payloads[client] = rejected(client, train_loss, self.device)

    def exchange(self, world: World) -> Exchanged:
        """One packed all-gather, then the weighted mean of the accepted payloads (none: a mean of zeros)."""
        received = list(self._gather(world))
        accepted = [payload for payload in received if payload.accepted]
        weights = accepted_weights(self.weights, [payload.client for payload in accepted])
        pairs = ((weight, payload.indices, payload.values) for payload, weight in zip(accepted, weights))
        mean_delta = weighted_mean(self.total, pairs, self.device)
        mean_buffers = torch.zeros(self.buffers, device=self.device)
        for payload, weight in zip(accepted, weights):
            mean_buffers.add_(payload.buffers, alpha=weight)
        return Exchanged(
            mean_delta,
            mean_buffers,
            [payload.client for payload in accepted],
            [payload.client for payload in received if not payload.accepted],
            math.fsum(payload.train_loss * weight for payload, weight in zip(accepted, weights)),
            sum(payload.kept for payload in accepted),
            sum(payload.nbytes for payload in received),
        )

    def _gather(self, world: World) -> Iterator[Payload]:
        """All payloads of the cohort in its order, gathered in runs of consecutive clients."""
        size = max_nbytes(self.max_kept, self.buffers)
        clients_per_gather = max(1, GATHER_LIMIT // size) * world.size
        for start in range(0, len(self.cohort), clients_per_gather):
            part = self.cohort[start : start + clients_per_gather]
            hosted = [[client for client, rank in part if rank == host] for host in range(world.size)]
            nbytes = max(len(clients) for clients in hosted) * size
            packed = torch.zeros(math.ceil(nbytes / ALIGNMENT) * ALIGNMENT, dtype=torch.uint8, device=self.device)
            end = 0
            for client in hosted[world.rank]:
                encoded = encode(self.payloads.pop(client))
                packed[end : end + encoded.numel()] = encoded
                end += encoded.numel()
            gathered = world.all_gather(packed)
            decoded = {
                payload.client: payload
                for host, row in zip(hosted, gathered)
                for payload in decode(row, len(host), self.buffers)
            }
            yield from (decoded[client] for client, _ in part)


class DenseUplink:
    """Sums this rank's clients as they come and reduces the sums of all ranks.

    The vector that is reduced is [sum of weighted deltas | sum of weighted buffers | loss, accepted? of each client];
    only the hosting rank writes a client's two slots, so their sum is what it wrote.
    """

    def __init__(
        self, cohort: Cohort, weights: dict[int, float], total: int, buffers: int, device: torch.device
    ) -> None:
        self.clients = [client for client, _ in cohort]
        self.weights = weights
        self.sums = torch.zeros(total + buffers + 2 * len(cohort), device=device)
        self.delta_sum, self.buffer_sum, reports = self.sums.split([total, buffers, 2 * len(cohort)])
        self.reports = reports.view(len(cohort), 2)

    def add(self, client: int, train_loss: float, model_delta: Tensor, buffers: Tensor, state: State) -> None:
        """Add one client's weighted delta; nothing is left to remember."""
        self.delta_sum.add_(model_delta, alpha=self.weights[client])
        self.buffer_sum.add_(buffers, alpha=self.weights[client])
        self.reports[self.clients.index(client)] = torch.tensor([train_loss, 1.0])

    def reject(self, client: int, train_loss: float) -> None:
        """Leave one client out of the round: its slots stay zero."""

    def exchange(self, world: World) -> Exchanged:
        """One all-reduce of the sums, scaled to the clients that are present (none: a mean of zeros)."""
        world.all_reduce_(self.sums)
        reports = dict(zip(self.clients, self.reports.tolist()))
        accepted = [client for client, (_, present) in reports.items() if present]
        weights = accepted_weights(self.weights, accepted)
        if accepted and len(accepted) < len(reports):  # the sums hold planned weights: rescale to the clients present
            present = math.fsum(self.weights[client] for client in accepted)
            self.delta_sum.div_(present)
            self.buffer_sum.div_(present)
        total = self.delta_sum.numel()
        return Exchanged(
            self.delta_sum,
            self.buffer_sum,
            accepted,
            [client for client in self.clients if client not in accepted],
            math.fsum(reports[client][0] * weight for client, weight in zip(accepted, weights)),
            len(accepted) * total,
            len(accepted) * total * 4,
        )
