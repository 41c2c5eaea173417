"""The record of a task: what a model learns, and how it is judged.

A task is a few functions of a model and a batch, which is (inputs, labels) or what the collate of a user's Dataset
makes. Losses and metrics come as (sum, count), so that pieces of a batch, ranks and clients add up to what the whole
would have given, however many labels count in each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from torch import Tensor, nn

if TYPE_CHECKING:
    from torchmetrics import Metric

Batch = Any  # (inputs, labels); of a user's Dataset whatever its collate makes, such as a dict
Shape = tuple[int, ...]
Count = Tensor | float
Amount = Tensor | tuple[Tensor, Count]  # a tensor that adds up over batches, or (sum, count)
Totals = Mapping[str, Amount]
Best = tuple[str, str]  # a metric, and "max" or "min"
# What else is logged of an evaluation, as test_NAME, best_NAME or worst_client_NAME: no metric has such a name.
LOGGED = ("examples", "name", "round", "skipped_examples")
ClassOf = Literal["example", "token", "pixel"]


def no_metrics(model: nn.Module, batch: Batch) -> Totals:
    """Measure the loss alone."""
    return {}


def ratios(totals: Totals) -> dict[str, float]:
    """Divide each sum by its count; a tensor must be a single number."""
    return {name: ratio(name, amount) for name, amount in totals.items()}


def ratio(name: str, amount: Amount) -> float:
    """Divide one sum by its count; NaN if nothing was counted."""
    if isinstance(amount, tuple):
        total, count = (float(part) for part in amount)
        return total / count if count else math.nan
    if amount.numel() != 1:
        shape = tuple(amount.shape)
        raise ValueError(f"task.name: metric {name} must be one number, got shape {shape}; give the task a `finish`")
    return float(amount)


def any_labels(labels: Tensor, inputs: Shape, classes: int) -> None:
    """Accept all labels."""


class Task(NamedTuple):
    """Define how a model is trained and judged.

    `criterion`, if the loss is a function of (outputs, labels), opens the fast paths: recorded steps, and, if it takes
    reduction="none" as the losses of torch.nn.functional do, clients as one batch. It must agree with `loss`, which is
    checked on one batch before a run.

    Args:
        loss: (model, batch) -> (sum, count) over the labels that count; a plain scalar is the mean over the examples of
            the batch.
        metrics: (model, batch) -> a tensor or (sum, count) for each name, which add up over batches. With "loss" among
            them an evaluation takes one forward pass, not two.
        torchmetrics: more metrics by name, updated with (outputs, labels) of the same forward pass.
        finish: makes numbers of the sums over all batches; the default divides sums by counts.
        best: the metric by which models are compared, and whether more of it is better, "max", or less, "min".
        outputs: (shape of an input, classes) -> the shape that the output of an example must have; None = any.
        criterion: the loss as a function of (outputs, labels).
        ignored: a label that the criterion leaves out, as those of torch.nn.functional do with ignore_index.
        check_labels: (labels, shape of all inputs, classes), raises ValueError if it cannot learn from them.
        class_of: what has one class each: example, token or pixel; None if labels are no classes. Partitions by class
            need one for each example, and augmentation moves labels of pixels.
    """

    loss: Callable[[nn.Module, Batch], Tensor | tuple[Tensor, Count]]
    metrics: Callable[[nn.Module, Batch], Totals] = no_metrics
    torchmetrics: Mapping[str, Metric] = MappingProxyType({})
    finish: Callable[[Totals], dict[str, float]] = ratios
    best: Best = ("loss", "min")
    outputs: Callable[[Shape, int], Shape] | None = None
    criterion: Callable[..., Tensor] | None = None
    ignored: int | None = None
    check_labels: Callable[[Tensor, Shape, int], None] = any_labels
    class_of: ClassOf | None = None
