"""A round's cohort, and the mean of vectors that its clients send uncompressed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from flare_dist.comm.world import World


@dataclass(frozen=True)
class Cohort:
    """The clients of one round."""

    hosts: dict[int, int]  # client -> the rank that trains it, in ascending client order
    weights: dict[int, float]  # client -> its weight, summing to 1


def mean_in_order(
    world: World, cohort: Cohort, own: Mapping[int, Tensor], total: int
) -> tuple[Tensor | None, list[int]]:
    """Average the clients' dense vectors by weight, float32 [total]; also return whose they are: those that are finite.

    `own` are those of the clients on this rank. One all-reduce for each client, in order, so that the bits do not
    depend on who hosted whom; None if no vector is finite. One that is not on a rank of its host is left out by all.
    """
    mean = torch.zeros(total, device=world.device)
    present = 0.0
    finite = []
    for client, weight in cohort.weights.items():
        vector = world.all_reduce_(own[client] if client in own else torch.zeros_like(mean))
        if world.host.all_true(bool(vector.isfinite().all())):
            mean.add_(vector, alpha=weight)
            present += weight
            finite.append(client)
    return (mean.div_(present), finite) if finite else (None, [])
