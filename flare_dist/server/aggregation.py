"""Aggregation: the clients' payloads become one mean model delta.

H. Brendan McMahan, Eider Moore, Daniel Ramage, Seth Hampson, Blaise Aguera y Arcas, "Communication-Efficient Learning
of Deep Networks from Decentralized Data", AISTATS 2017, https://arxiv.org/abs/1602.05629

Weighted mean: w_{t+1} - w_t = sum_k (n_k / n) Delta_k, over the clients that took part only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from flare_dist.compression.payload import Dense, Payload


@dataclass
class SparseSum:
    """A weighted sum of sparse payloads that is never written out as a vector: their entries, as they came.

    It has those operations of a vector that a mean delta meets on its way to a plain step of the server, `add_to_`,
    which touches nothing but those entries. If clients send the same entry, each is added by itself, so that the sum
    is rounded in another order than a dense one.
    """

    _indices: list[Tensor] = field(default_factory=list)  # int64, each without repetition
    _values: list[Tensor] = field(default_factory=list)

    def index_add_(self, dim: int, indices: Tensor, values: Tensor) -> None:
        """Remember `values` at `indices`; both are kept."""
        self._indices.append(indices.long())  # by which additions are faster than by int32
        self._values.append(values)

    def mul_(self, factor: float) -> None:
        for values in self._values:
            values.mul_(factor)

    def div_(self, divisor: float) -> None:
        for values in self._values:
            values.div_(divisor)

    def add_to_(self, vector: Tensor, factor: float) -> None:
        """Add factor * sum to `vector`, float32 [total], in the order in which the payloads came."""
        for indices, values in zip(self._indices, self._values):
            vector.scatter_add_(0, indices, values if factor == 1 else values * factor)


DeltaSum = Tensor | SparseSum
Receive = Callable[[DeltaSum, int, Payload, float], None]  # what is made of (total, client, payload, weight)


def by_num_examples(num_examples: Sequence[int]) -> list[float]:
    return [float(n) for n in num_examples]


def uniform(num_examples: Sequence[int]) -> list[float]:
    return [1.0] * len(num_examples)


def cohort_weights(cohort: Sequence[int], num_examples: Sequence[int], weighting: str) -> dict[int, float]:
    """Weigh the clients of the cohort, summing to 1; `num_examples` is indexed by client."""
    raw = WEIGHTINGS[weighting]([num_examples[client] for client in cohort])
    return {client: weight / math.fsum(raw) for client, weight in zip(cohort, raw)}


def mean(total: DeltaSum, payload: Payload, weight: float) -> None:
    """Add one client's payload, times its weight, to `total` in place; call in client order, for the bits' sake."""
    if isinstance(payload, Dense):
        assert isinstance(total, Tensor), "a dense payload has no place in a sparse sum"
        total.add_(payload.values, alpha=weight)
    else:
        total.index_add_(0, payload.indices, payload.values * weight)


WEIGHTINGS: dict[str, Callable[[Sequence[int]], list[float]]] = {"num_examples": by_num_examples, "uniform": uniform}
