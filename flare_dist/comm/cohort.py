"""A round's cohort, and what its exchange gives: the weighted means of what the accepted clients sent.

Weights are those of the whole cohort; if clients were rejected, the sum is divided by the weight that is present.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from flare_dist.comm.world import World
from flare_dist.server.aggregation import DeltaSum


@dataclass(frozen=True)
class Cohort:
    """The clients of one round."""

    hosts: dict[int, int]  # client -> the rank that trains it, in ascending client order
    weights: dict[int, float]  # client -> its weight, summing to 1


@dataclass(frozen=True)
class Received:
    """The means over the accepted clients, and what was sent for them."""

    mean_delta: DeltaSum  # of float32 [total]; zero if nobody was accepted, and on ranks that do not step the server
    mean_buffer_delta: Tensor  # float32 [b]
    accepted: list[int]  # clients, ascending
    rejected: list[int]
    train_loss: float  # mean of the accepted clients' training losses, weighted like their deltas
    kept: int  # entries in all payloads
    uplink_bytes: int  # encoded updates, before padding, without buffers; of dense payloads the values alone
    beside: dict[str, Tensor] = field(default_factory=dict)  # means of the payloads beside the delta, on every rank

    @property
    def mean_vector(self) -> Tensor:
        """Return the mean delta, which is a vector everywhere but on the way to a plain step of the server."""
        assert isinstance(self.mean_delta, Tensor)
        return self.mean_delta

    def with_payload(self, name: str, other: Received) -> Received:
        """Add the mean of another payload of the same clients, and its bytes."""
        return replace(
            self,
            beside=self.beside | {name: other.mean_vector},
            kept=self.kept + other.kept,
            uplink_bytes=self.uplink_bytes + other.uplink_bytes,
        )


def received_of(
    cohort: Cohort, losses: dict[int, float], delta_sum: DeltaSum, buffer_sum: Tensor, kept: int, uplink_bytes: int
) -> Received:
    """Make means of weighted sums over the clients in `losses`, which are those accepted; in place."""
    accepted = list(losses)
    rejected = [client for client in cohort.hosts if client not in losses]
    present = math.fsum(cohort.weights[client] for client in accepted) if rejected else 1.0
    if rejected and accepted:
        delta_sum.div_(present)
        buffer_sum.div_(present)
    train_loss = math.fsum(cohort.weights[client] * loss for client, loss in losses.items()) / (present or 1.0)
    return Received(delta_sum, buffer_sum, accepted, rejected, train_loss, kept, uplink_bytes)


def mean_in_order(
    world: World, cohort: Cohort, own: Mapping[int, Tensor], total: int
) -> tuple[Tensor | None, list[int]]:
    """Average the clients' dense vectors by weight, float32 [total]; also return whose they are: those that are finite.

    `own` are those of the clients on this rank. One all-reduce for each client, in order, so that the bits do not
    depend on who hosted whom; None if no vector is finite.
    """
    mean = torch.zeros(total, device=world.device)
    present = 0.0
    finite = []
    for client, weight in cohort.weights.items():
        vector = world.all_reduce_(own[client] if client in own else torch.zeros_like(mean))
        if bool(vector.isfinite().all()):
            mean.add_(vector, alpha=weight)
            present += weight
            finite.append(client)
    return (mean.div_(present), finite) if finite else (None, [])
