"""Aggregation: the clients' payloads become one mean model delta.

Weighted mean, McMahan et al. 2017: w_{t+1} - w_t = sum_k (n_k / n) Delta_k, over the clients that took part only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor

from flare_dist.compression.payload import Payload

Aggregator = Callable[[Tensor, Payload, float], None]


def by_num_examples(num_examples: Sequence[int]) -> list[float]:
    return [float(n) for n in num_examples]


def uniform(num_examples: Sequence[int]) -> list[float]:
    return [1.0] * len(num_examples)


def cohort_weights(cohort: Sequence[int], num_examples: Sequence[int], weighting: str) -> dict[int, float]:
    """The weight of each client of the cohort, summing to 1; `num_examples` is indexed by client."""
    raw = WEIGHTINGS[weighting]([num_examples[client] for client in cohort])
    return {client: weight / math.fsum(raw) for client, weight in zip(cohort, raw)}


def mean(total: Tensor, payload: Payload, weight: float) -> None:
    """Add one client's payload, times its weight, to `total` in place; call in client order, for the bits' sake."""
    if payload.indices is None:
        total.add_(payload.values, alpha=weight)
    else:
        total.index_add_(0, payload.indices, payload.values * weight)


WEIGHTINGS: dict[str, Callable[[Sequence[int]], list[float]]] = {"num_examples": by_num_examples, "uniform": uniform}
AGGREGATORS: dict[str, Aggregator] = {"mean": mean}
