"""EF21: a client sends the change of an estimate that the server keeps as well.

Peter Richtarik, Igor Sokolov, Ilyas Fatkhullin, "EF21: A New, Simpler, Theoretically Better, and Practically Faster
Error Feedback", NeurIPS 2021, https://arxiv.org/abs/2106.05203

A client sends S = C(Delta - g) and takes g <- g + S, from g = 0 (compression/error_feedback.py); the server does the
same with its own g of that client and averages those of the clients present, as in FLARE's comparison.
"""

from __future__ import annotations

from torch import Tensor

from flare_dist.algorithms.algorithm import Algorithm


def ef21() -> Algorithm:
    """Average the clients' estimates in place of their deltas."""
    return Algorithm(estimate=add_change)


def add_change(estimate: Tensor, indices: Tensor, values: Tensor) -> Tensor:
    """Add `values` at `indices` to a client's estimate, float32 [total], in place, and return it."""
    return estimate.index_add_(0, indices, values)
