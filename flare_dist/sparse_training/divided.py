"""What pruning criteria measure of a model that the ranks of a host have divided, each of them for its own weights.

The measures of criteria.py by gradients that the engine computes. A product with the Hessian is not among them: it
needs derivatives of gradients, and those of a divided model are no part of a graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from flare_dist.sparse_training import criteria
from flare_dist.sparse_training.criteria import Batches, first_inputs, only_linear
from flare_dist.sparse_training.layers import Members
from flare_dist.tasks.losses import at_least_one
from flare_dist.tasks.task import Batch, Count

_HALVINGS = (0, 32, 64, 96)


class Divided(Protocol):
    """An engine's model of which this rank holds a part; all ranks of its host call together."""

    module: nn.Module
    parameters: Tensor  # float32 [total] of this rank
    buffers: Tensor

    def load(self, parameters: Tensor, buffers: Tensor) -> None:
        """Give the model these values."""

    def gradient_of(self, batch: Batch) -> tuple[Tensor, Count]:
        """Return the gradient of a batch's mean loss, float32 [total], and how many labels count in it."""

    def flow_of(self, inputs: Tensor, scale: float) -> Tensor:
        """Return the gradient, float32 [total], of `scale` times the sum of the outputs under |W| and no biases."""


def nothing(model: Divided, batches: Batches, host: Members) -> Tensor:
    """Measure nothing, for criteria that look at the weights alone."""
    return torch.zeros_like(model.parameters)


def gradient(model: Divided, batches: Batches, host: Members) -> Tensor:
    """Measure the gradient of the mean loss, averaged over the batches by their counts; buffers keep their values."""
    buffers = model.buffers.clone()
    model.module.train()
    total = torch.zeros_like(model.parameters)
    seen: Count = 0
    for batch in batches:
        mean, count = model.gradient_of(batch)
        total.add_(mean * count)
        seen = seen + count
    model.load(model.parameters, buffers)
    return total / at_least_one(seen)


def flow(model: Divided, batches: Batches, host: Members) -> Tensor:
    """Measure what synflow does, up to a factor, in the engine's float32.

    R and its gradients are linear in the input and in the factor before the backward pass, so that both take out of R
    the powers of two by which it leaves the range.
    """
    ones = torch.ones_like(first_inputs(next(iter(batches)))[:1], dtype=torch.float32)
    with only_linear(model.module):
        for halvings in _HALVINGS:
            found = model.flow_of(ones * 2.0**-halvings, 2.0**-halvings)
            if host.all_true(bool(found.isfinite().all())):
                own = found.amax() if found.numel() else found.new_zeros(())
                return found / (float(host.gather(own.view(1)).amax()) or 1.0)
    raise ValueError(
        "pruning.criterion: the scores of this model leave the range of float32, got synflow on a host of several "
        "ranks; choose another, or engine.shards=1"
    )


# By what criteria.py measures of a whole model.
DIVIDED: dict[Any, Callable[[Divided, Batches, Members], Tensor]] = {
    criteria.nothing: nothing,
    criteria.gradient: gradient,
    criteria.flow: flow,
}
