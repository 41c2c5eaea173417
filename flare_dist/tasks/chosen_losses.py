"""The losses of the built-in tasks by name, and weights of classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from flare_dist.tasks.losses import counted

Criterion = Callable[..., Tensor]  # (outputs, labels, reduction="mean") as torch.nn.functional has them

BALANCED = "balanced"

_ENTROPY: dict[str, Criterion] = {"cross_entropy": F.cross_entropy}
LOSSES: dict[str, dict[str, Criterion]] = {
    "classification": _ENTROPY,
    "next_token": _ENTROPY,
    "segmentation": _ENTROPY,
    "regression": {
        "mse": F.mse_loss,
        "mae": F.l1_loss,
        "huber": F.huber_loss,
        "smooth_l1": F.smooth_l1_loss,
    },
}


@dataclass(frozen=True)
class WeightedCrossEntropy:
    """Compute the cross-entropy, each label's times the weight of its class.

    The mean is over the labels, not over their weights as in torch.nn.CrossEntropyLoss: there, weights cancel in a
    batch of one class, and such batches are what many a client has.
    """

    weights: tuple[float, ...]

    def __call__(self, outputs: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
        weight = _on(self.weights, outputs.device, outputs.dtype)
        if reduction == "mean":
            return F.cross_entropy(outputs, labels, weight, reduction="sum") / labels.numel()
        return F.cross_entropy(outputs, labels, weight, reduction=reduction)


@dataclass(frozen=True)
class MeanOnly:
    """Add up the losses of a batch by a criterion that only gives their mean over the labels that count."""

    criterion: Criterion
    ignored: int | None = None

    def __call__(self, outputs: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
        mean = self.criterion(outputs, labels)
        return mean if reduction == "mean" else mean * counted(labels, self.ignored)


@cache
def _on(weights: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Hold the weights on a device, so that a step copies nothing there."""
    return torch.tensor(weights, device=device, dtype=dtype)


def balanced_weights(labels: Tensor, classes: int) -> tuple[float, ...]:
    """Weigh each class by n / (classes that are there * its labels), as scikit-learn does; the mean over labels is 1.

    `labels` are int64 of any shape; those below 0 are ignored. A class without labels weighs 1.
    """
    counts = torch.bincount(labels[labels >= 0].flatten(), minlength=classes).tolist()
    total = sum(counts)
    present = sum(count > 0 for count in counts)
    return tuple(total / (present * count) if count else 1.0 for count in counts)


def check_weights(weights: Sequence[float], classes: int) -> None:
    """Raise ValueError that names task.class_weights unless there is one weight for each class."""
    if len(weights) != classes:
        raise ValueError(
            f"task.class_weights: must be {classes} numbers, one for each class, got {len(weights)}; or use {BALANCED}"
        )


def check_weight_values(weights: Sequence[float]) -> None:
    """Raise ValueError that names task.class_weights unless weights are finite, none negative and not all 0."""
    if not all(0 <= weight < math.inf for weight in weights) or not any(weights):
        raise ValueError(
            f"task.class_weights: must be 0 or above, finite and not all 0, got {list(weights)}; or use {BALANCED}"
        )
