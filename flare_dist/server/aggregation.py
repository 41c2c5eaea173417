"""Aggregation: the clients' updates become one pseudo-gradient's worth of model delta.

Weighted mean, McMahan et al. 2017: w_{t+1} - w_t = sum_k (n_k / n) Delta_k, over the clients that took part only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor


def by_num_examples(num_examples: Sequence[int]) -> list[float]:
    return [float(n) for n in num_examples]


def uniform(num_examples: Sequence[int]) -> list[float]:
    return [1.0] * len(num_examples)


def cohort_weights(cohort: Sequence[int], num_examples: Sequence[int], weighting: str) -> dict[int, float]:
    """The weight of each client of the cohort, summing to 1; `num_examples` is indexed by client."""
    raw = WEIGHTINGS[weighting]([num_examples[client] for client in cohort])
    return {client: weight / math.fsum(raw) for client, weight in zip(cohort, raw)}


def accepted_weights(weights: dict[int, float], accepted: Sequence[int]) -> list[float]:
    """The weights of the accepted clients; scaled to a sum of 1 where some of the cohort were rejected."""
    if len(accepted) == len(weights):
        return [weights[client] for client in accepted]
    present = math.fsum(weights[client] for client in accepted)
    return [weights[client] / present for client in accepted]


def weighted_mean(total: int, pairs: Iterable[tuple[float, Tensor, Tensor]], device: torch.device) -> Tensor:
    """float32 [total]: the sum of (weight, indices, values) over clients, added up in the order given."""
    mean = torch.zeros(total, device=device)
    for weight, indices, values in pairs:
        mean.index_add_(0, indices, values * weight)
    return mean


WEIGHTINGS: dict[str, Callable[[Sequence[int]], list[float]]] = {"num_examples": by_num_examples, "uniform": uniform}
AGGREGATORS = {"mean": weighted_mean}
