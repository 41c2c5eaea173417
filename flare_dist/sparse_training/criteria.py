"""Pruning scores: what is kept is what scores highest, so that a sparse model can be trained from the beginning.

A criterion is a function (module, weights, batches, task) -> one tensor for each weight. Those that look at data return
a gradient of the mean loss or a Hessian-vector product, which can be averaged over clients before `finish` makes scores
of it: the server then scores by the gradient of the federation's loss.

magnitude |w| (Han et al. 2015), snip |w * g| (Lee et al. 2019), grasp w * (H g) (Wang et al. 2020, its sign turned so
that the largest are kept), synflow |w * dR/dw| with R = 1^T prod |W_l| 1 (Tanaka et al. 2020), threshold |g| >= t,
random.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from flare_dist.preserved import preserved
from flare_dist.tasks.batch import describe, pair
from flare_dist.tasks.losses import at_least_one, mean_loss
from flare_dist.tasks.task import Batch, Count, Task

Batches = Iterable[Batch]
Measure = Callable[[nn.Module, Sequence[Tensor], Batches, Task], list[Tensor]]
Finish = Callable[[Tensor, Tensor], Tensor]  # (weight, measured) -> score

# Layers whose output is no product of weights and input: for synflow they are left out.
_NOT_LINEAR = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.Softmax, nn.LogSoftmax, nn.Dropout)


class Criterion(NamedTuple):
    """How weights are scored; if it `needs_data`, `measure` looks at them, and clients send the result."""

    measure: Measure
    finish: Finish
    needs_data: bool = False


def nothing(module: nn.Module, weights: Sequence[Tensor], batches: Batches, task: Task) -> list[Tensor]:
    """Measure nothing, for criteria that look at the weights alone."""
    return [torch.zeros_like(weight) for weight in weights]


def gradient(module: nn.Module, weights: Sequence[Tensor], batches: Batches, task: Task) -> list[Tensor]:
    """Measure the gradient of the mean loss, averaged over the batches by their counts; buffers keep their values."""
    with _untouched(module):
        mean, _ = _averaged(module, weights, batches, task, create_graph=False)
        return mean


def hessian_gradient(module: nn.Module, weights: Sequence[Tensor], batches: Batches, task: Task) -> list[Tensor]:
    """Measure H g by differentiating g^T stop(g), with the Hessian of these weights and the gradient of all batches."""
    with _untouched(module):
        kept = list(batches)
        mean, seen = _averaged(module, weights, kept, task, create_graph=False)
        fixed = [g.detach() for g in mean]
        total = [torch.zeros_like(weight) for weight in weights]
        for batch in kept:
            gradients, count = _averaged(module, weights, [batch], task, create_graph=True)
            product = sum((g * f).sum() for g, f in zip(gradients, fixed))
            assert isinstance(product, Tensor)
            if not product.requires_grad:  # a loss that is linear in the weights
                continue
            # Weights on which the gradient does not depend have none.
            parts = torch.autograd.grad(product, list(weights), allow_unused=True)
            for slot, part in zip(total, parts):
                if part is not None:
                    slot.add_(part, alpha=float(count / at_least_one(seen)))
        return total


def flow(module: nn.Module, weights: Sequence[Tensor], batches: Batches, task: Task) -> list[Tensor]:
    """Measure dR/d|w| of R = 1^T prod |W_l| 1, the sum of scores of an input of ones, up to a factor; in float64.

    Of `batches` only the shape of the first input counts. Norms, dropout and softmax are left out and biases are zero.
    """
    inputs = first_inputs(next(iter(batches)))
    with only_linear(module), _positive(module):
        scores = module(torch.ones_like(inputs[:1], dtype=torch.float64))
        parts = torch.autograd.grad(scores.sum(), list(weights), allow_unused=True)
        found = [torch.zeros_like(w) if p is None else p for w, p in zip(weights, parts)]
        # In a deep network R leaves the range of float32; the order of scores is all that counts.
        scale = max(float(part.amax()) for part in found) or 1.0
        return [part / scale for part in found]


def first_inputs(batch: Batch) -> Tensor:
    """Return the inputs of a batch; raises ValueError if they are not one tensor."""
    inputs, _ = pair(batch)
    if not isinstance(inputs, Tensor):
        raise ValueError(f"pruning.criterion: synflow needs inputs that are one tensor, got {describe(batch)}")
    return inputs


def _averaged(
    module: nn.Module, weights: Sequence[Tensor], batches: Batches, task: Task, create_graph: bool
) -> tuple[list[Tensor], Count]:
    """Average the gradient of the mean loss over all batches; also returns how many labels count in it."""
    total = [torch.zeros_like(weight) for weight in weights]
    seen: Count = 0
    for batch in batches:
        loss, count = mean_loss(task, module, batch)
        parts = torch.autograd.grad(loss, list(weights), create_graph=create_graph, allow_unused=True)
        total = [t if p is None else t + p * count for t, p in zip(total, parts)]
        seen = seen + count
    return [slot / at_least_one(seen) for slot in total], seen


@contextmanager
def _untouched(module: nn.Module) -> Iterator[None]:
    """Put the module in training mode, and restore it afterwards: a look at the data is no training."""
    with preserved(module):
        module.train()
        yield


@contextmanager
def only_linear(module: nn.Module) -> Iterator[None]:
    """Let inputs pass through layers whose output is no product with weights, and bring the layers back afterwards."""
    left_out = [layer for layer in module.modules() if isinstance(layer, _NOT_LINEAR)]
    try:
        for layer in left_out:
            vars(layer)["forward"] = lambda inputs: inputs
        yield
    finally:
        for layer in left_out:
            del vars(layer)["forward"]


@contextmanager
def _positive(module: nn.Module) -> Iterator[None]:
    """Make |W_l| of the weights in float64 and zeros of the biases, and restore them afterwards."""
    before = [(p, p.data) for p in module.parameters()]
    try:
        for p, data in before:
            p.data = data.double().abs() if p.dim() > 1 else torch.zeros_like(data, dtype=torch.float64)
        yield
    finally:
        for p, data in before:
            p.data = data


def magnitude_score(weight: Tensor, measured: Tensor) -> Tensor:
    """Score by |w|."""
    return weight.abs()


def saliency(weight: Tensor, measured: Tensor) -> Tensor:
    """Score by |w * g|, the change of the loss to first order if the weight goes (snip); for synflow w is |w|."""
    return (weight * measured).abs()


def signed_product(weight: Tensor, measured: Tensor) -> Tensor:
    """Score by w * (H g), the fall of the gradient's norm if the weight goes (grasp)."""
    return weight * measured


def absolute(weight: Tensor, measured: Tensor) -> Tensor:
    """Score by |g|, for the threshold."""
    return measured.abs()


CRITERIA: dict[str, Criterion] = {
    "magnitude": Criterion(nothing, magnitude_score),
    "random": Criterion(nothing, absolute),  # scores are drawn, not measured
    "snip": Criterion(gradient, saliency, needs_data=True),
    "grasp": Criterion(hessian_gradient, signed_product, needs_data=True),
    "synflow": Criterion(flow, saliency),
    "threshold": Criterion(gradient, absolute, needs_data=True),
}
