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
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from flare_dist.layout import Entry, preserved
from flare_dist.sparse_training.masks import apportion, layer_counts, layers_of, none_empty
from flare_dist.tasks.task import Count, Task, at_least_one, mean_loss

SCOPES = ("global", "erk", "uniform")
DATA = ("clients", "server")

Batches = Iterable[tuple[Tensor, Tensor]]  # (inputs, labels)
Measure = Callable[[nn.Module, Sequence[Tensor], Batches, Task], list[Tensor]]
Finish = Callable[[Tensor, Tensor], Tensor]  # (weight, measured) -> score

# Layers whose output is no product of weights and input: for synflow they are left out.
_NOT_LINEAR = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.Softmax, nn.LogSoftmax, nn.Dropout)


class Criterion(NamedTuple):
    """How weights are scored; `measure` is of the data where `needs_data`, and then what clients send."""

    measure: Measure
    finish: Finish
    needs_data: bool = False


def nothing(module: nn.Module, weights: Sequence[Tensor], batches: Batches, task: Task) -> list[Tensor]:
    """For criteria that look at the weights alone."""
    return [torch.zeros_like(weight) for weight in weights]


def gradient(module: nn.Module, weights: Sequence[Tensor], batches: Batches, task: Task) -> list[Tensor]:
    """The gradient of the mean loss, averaged over the batches by their counts; buffers keep their values."""
    with _untouched(module):
        mean, _ = _averaged(module, weights, batches, task, create_graph=False)
        return mean


def hessian_gradient(module: nn.Module, weights: Sequence[Tensor], batches: Batches, task: Task) -> list[Tensor]:
    """H g, by differentiating g^T stop(g); the Hessian of these weights, at the gradient over all the batches."""
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
    """dR/d|w| of R = 1^T prod |W_l| 1, the sum of scores of an input of ones, up to a factor; in float64.

    Of `batches` only the shape of the first input counts. Norms, dropout and softmax are left out and biases are zero.
    """
    inputs, _ = next(iter(batches))
    with _linear_and_positive(module):
        scores = module(torch.ones_like(inputs[:1], dtype=torch.float64))
        parts = torch.autograd.grad(scores.sum(), list(weights), allow_unused=True)
        found = [torch.zeros_like(w) if p is None else p for w, p in zip(weights, parts)]
        # In a deep network R leaves the range of float32; the order of scores is all that counts.
        scale = max(float(part.amax()) for part in found) or 1.0
        return [part / scale for part in found]


def _averaged(
    module: nn.Module, weights: Sequence[Tensor], batches: Batches, task: Task, create_graph: bool
) -> tuple[list[Tensor], Count]:
    """The gradient of the mean loss over all batches, and how many labels count in it."""
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
    """Training mode, after which the module is what it was: a look at the data is no training."""
    with preserved(module):
        module.train()
        yield


@contextmanager
def _linear_and_positive(module: nn.Module) -> Iterator[None]:
    """The module as a chain of |W_l| in float64; its parameters are put back afterwards."""
    before = [(p, p.data) for p in module.parameters()]
    left_out = [layer for layer in module.modules() if isinstance(layer, _NOT_LINEAR)]
    try:
        for layer in left_out:
            vars(layer)["forward"] = lambda inputs: inputs
        for p, data in before:
            p.data = data.double().abs() if p.dim() > 1 else torch.zeros_like(data, dtype=torch.float64)
        yield
    finally:
        for layer in left_out:
            del vars(layer)["forward"]
        for p, data in before:
            p.data = data


def magnitude_score(weight: Tensor, measured: Tensor) -> Tensor:
    """|w|."""
    return weight.abs()


def saliency(weight: Tensor, measured: Tensor) -> Tensor:
    """|w * g|: by how much the loss changes to first order if the weight goes (snip); for synflow w is |w|."""
    return (weight * measured).abs()


def signed_product(weight: Tensor, measured: Tensor) -> Tensor:
    """w * (H g): by how much the gradient's norm falls if the weight goes (grasp)."""
    return weight * measured


def absolute(weight: Tensor, measured: Tensor) -> Tensor:
    """|g|, for the threshold."""
    return measured.abs()


CRITERIA: dict[str, Criterion] = {
    "magnitude": Criterion(nothing, magnitude_score),
    "random": Criterion(nothing, absolute),  # scores are drawn, not measured
    "snip": Criterion(gradient, saliency, needs_data=True),
    "grasp": Criterion(hessian_gradient, signed_product, needs_data=True),
    "synflow": Criterion(flow, saliency),
    "threshold": Criterion(gradient, absolute, needs_data=True),
}


@dataclass(frozen=True)
class PruningConfig:
    """By which score the weights of sparse_training.method pruned are chosen, before the first round.

    Args:
        criterion: magnitude, random, snip, grasp, synflow or threshold (gradients of at least `threshold`, at most
            sparse_training.density of the weights).
        scope: global (the highest scores of the whole model), erk (each layer's share by Erdos-Renyi-Kernel: thin
            layers are denser) or uniform (the same density in each layer).
        steps: in how many steps the density falls to its end, exponentially, scores being taken anew in each; SynFlow
            takes 100.
        data: whose data criteria look at: clients (they send gradients, which the server averages) or server (the
            examples that data.validation holds out).
        frac: share of all clients that are asked, in (0, 1].
        batches: mini-batches that each of them, or the server, looks at.
        threshold: smallest gradient that the threshold criterion keeps.
    """

    criterion: str = "snip"
    scope: str = "global"
    steps: int = 1
    data: str = "clients"
    frac: float = 0.05
    batches: int = 1
    threshold: float = 0.01

    def __post_init__(self) -> None:
        for name, known in {"criterion": CRITERIA, "scope": SCOPES, "data": DATA}.items():
            if getattr(self, name) not in known:
                raise ValueError(f"pruning.{name}: must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        for name in ("steps", "batches"):
            if getattr(self, name) < 1:
                raise ValueError(f"pruning.{name}: must be at least 1, got {getattr(self, name)}")
        if not 0 < self.frac <= 1:
            raise ValueError(f"pruning.frac: must be in (0, 1], got {self.frac}")
        if not self.threshold >= 0:
            raise ValueError(f"pruning.threshold: must not be negative, got {self.threshold}")

    @property
    def looks_at_data(self) -> bool:
        return CRITERIA[self.criterion].needs_data


def layer_shares(scope: str, entries: Sequence[Entry]) -> list[float] | None:
    """What each layer's number of weights is in proportion to; None where scores alone decide.

    ERK (Evci et al. 2020): d_l in proportion to the sum of a layer's sizes over their product, n_l.
    """
    if scope == "global":
        return None
    return [float(sum(entry.shape) if scope == "erk" else entry.numel) for entry in entries]


def highest(
    scores: Tensor, entries: Sequence[Entry], keep: int, mask: Tensor, shares: Sequence[float] | None
) -> Tensor:
    """The mask of the `keep` highest scores among what is active in `mask`, at least one in each layer.

    `scores` are float32 [total]; ties go to the lowest index. With `shares` each layer keeps its own part.
    """
    actives = layer_counts(mask, entries)
    if shares is None:
        allowed = [layer[own] for layer, own in zip(layers_of(scores, entries), layers_of(mask, entries))]
        together = torch.cat(allowed)
        bound = together.topk(keep).values[-1] if keep < together.numel() else together.amin()
        counts = [int((layer > bound).sum()) for layer in allowed]
        for place, layer in enumerate(allowed):
            counts[place] += min(int((layer == bound).sum()), keep - sum(counts))
    else:
        counts = apportion(shares, keep, actives)
    counts = none_empty(counts, actives)
    kept = mask.clone()
    for layer, values, count in zip(layers_of(kept, entries), layers_of(scores, entries), counts):
        places = layer.nonzero().squeeze(1)
        layer.zero_()
        order = torch.argsort(values[places], descending=True, stable=True)
        layer[places[order[:count]]] = True
    return kept
