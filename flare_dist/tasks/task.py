"""The record of a task: what a model learns, and how it is judged.

A task is a few functions of a model and a batch, (inputs, labels). Losses and metrics come as (sum, count), so that
pieces of a batch, ranks and clients add up to what the whole would have given, however many labels count in each.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]  # (inputs, labels)
Shape = tuple[int, ...]
Count = Tensor | float
Amount = Tensor | tuple[Tensor, Count]  # a tensor that adds up over batches, or (sum, count)
Totals = Mapping[str, Amount]
Best = tuple[str, str]  # a metric, and "max" or "min"
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
    """

    # (sum, count) over the labels that count; a plain scalar is the mean over the examples of the batch.
    loss: Callable[[nn.Module, Batch], Tensor | tuple[Tensor, Count]]
    # Measures a batch beside the loss. With "loss" among the metrics an evaluation takes one forward pass, not two.
    metrics: Callable[[nn.Module, Batch], Totals] = no_metrics
    # Makes numbers of the sums over all batches.
    finish: Callable[[Totals], dict[str, float]] = ratios
    # The metric by which models are compared, and whether more of it is better ("max") or less ("min").
    best: Best = ("loss", "min")
    # (shape of an input, classes) -> the shape that the output for one example must have; None = any.
    outputs: Callable[[Shape, int], Shape] | None = None
    criterion: Callable[..., Tensor] | None = None
    # A label that `criterion` leaves out, as the losses of torch.nn.functional do with ignore_index.
    ignored: int | None = None
    # Raises ValueError if it cannot learn from such labels, given the shape of all inputs and the number of classes.
    check_labels: Callable[[Tensor, Shape, int], None] = any_labels
    # The part of the data that has one class each; None if labels are no classes. Partitions by class need one for each
    # example, and augmentation moves labels of pixels.
    class_of: ClassOf | None = None


@dataclass(frozen=True)
class OfOutputs:
    """Compute the loss of a task that compares outputs with labels by `criterion`, without the `ignored` labels."""

    criterion: Callable[..., Tensor]
    ignored: int | None = None

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Count]:
        inputs, labels = batch
        return self.criterion(model(inputs), labels, reduction="sum"), counted(labels, self.ignored)


def counted(labels: Tensor, ignored: int | None) -> Count:
    """Count the labels that are not ignored; a plain number, which no GPU delays, if none can be."""
    return labels.numel() if ignored is None else (labels != ignored).sum()


def counts_all(task: Task) -> bool:
    """Tell whether the number of labels alone is the weight of a batch."""
    return task.criterion is not None and task.ignored is None


def has_loss_of_each(task: Task) -> bool:
    """Tell whether the criterion gives each label's loss, by reduction="none"."""
    if task.criterion is None:
        return False
    parameters = inspect.signature(task.criterion).parameters.values()
    return any(p.name == "reduction" or p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)


def mean_loss(task: Task, model: Callable[..., Any], batch: Batch) -> tuple[Tensor, Count]:
    """Compute (mean loss, number of labels that count) of a batch; the mean over none is 0."""
    inputs, labels = batch
    if task.criterion is not None:
        return mean_criterion(task, model(inputs), labels)
    measured = task.loss(model, batch)  # type: ignore[arg-type]
    if isinstance(measured, Tensor):
        return measured, len(labels)
    total, count = measured
    return total / at_least_one(count), count


def mean_criterion(task: Task, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Count]:
    """Compute what `mean_loss` does from outputs, for a task with a criterion."""
    assert task.criterion is not None
    if task.ignored is None:
        return task.criterion(outputs, labels), labels.numel()
    count = (labels != task.ignored).sum()
    return task.criterion(outputs, labels, reduction="sum") / count.clamp(min=1), count


def at_least_one(count: Count) -> Count:
    """Return a count to divide by: the sum over no labels is 0, and so is their mean."""
    return count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)


def measure(task: Task, model: nn.Module, batch: Batch) -> dict[str, Amount]:
    """Measure the loss and all metrics of a batch, as they add up over batches."""
    amounts: dict[str, Amount] = dict(task.metrics(model, batch))
    if "loss" not in amounts:
        mean, count = mean_loss(task, model, batch)
        amounts["loss"] = (mean * count, count)
    return amounts


def add(totals: Totals, amounts: Totals) -> dict[str, Amount]:
    """Add the amounts of one more batch to `totals`, in 64 bits; returns new totals."""
    added: dict[str, Amount] = {}
    for name, amount in amounts.items():
        before = totals.get(name)
        if isinstance(amount, tuple):
            earlier = before if isinstance(before, tuple) else (0, 0)
            added[name] = (earlier[0] + _wide(amount[0]), earlier[1] + _wide(amount[1]))
        else:
            added[name] = _wide(amount) if before is None else before + _wide(amount)  # type: ignore[operator]
    return added


def _wide(value: Count) -> Tensor:
    """Convert a number or tensor to float64, or to int64 if it counts something."""
    tensor = torch.as_tensor(value).detach()
    return tensor.to(torch.float64 if tensor.is_floating_point() else torch.int64)


def finish(task: Task, totals: Totals) -> dict[str, float]:
    """Turn the sums over all batches into the mean loss and the task's metrics."""
    return {"loss": ratio("loss", totals["loss"])} | {k: float(v) for k, v in task.finish(totals).items()}


def goodness(best: Best, value: float) -> float:
    """Map a metric to a number that is larger for the better of two values; NaN becomes the least of all."""
    _, direction = best
    if math.isnan(value):
        return -math.inf
    return value if direction == "max" else -value
