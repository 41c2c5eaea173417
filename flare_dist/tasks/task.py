"""The record of a task: what a model learns, and how it is judged.

A task is a few functions of a model and a batch, (inputs, labels). Losses and metrics come as (sum, count), so that
pieces of a batch, ranks and clients add up to what the whole would have given, however many labels count in each.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]  # (inputs, labels)
Shape = tuple[int, ...]
Count = Tensor | float
Amount = Tensor | tuple[Tensor, Count]  # a tensor that adds up over batches, or (sum, count)
Totals = Mapping[str, Amount]
Best = tuple[str, str]  # a metric, and "max" or "min"


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
        raise ValueError(f"task.name: its metric {name} is of shape {tuple(amount.shape)}; give it a `finish`")
    return float(amount)


def any_labels(labels: Tensor, inputs: Shape, classes: int) -> None:
    """Accept all labels."""


class Task(NamedTuple):
    """How a model is trained and judged.

    `criterion`, if the loss is a function of (outputs, labels), opens the fast paths: recorded steps, and, if it takes
    reduction="none" as the losses of torch.nn.functional do, clients as one batch. It must agree with `loss`.
    """

    # (sum, count) over the labels that count; a plain scalar is the mean over the examples of the batch.
    loss: Callable[[nn.Module, Batch], Tensor | tuple[Tensor, Count]]
    # What is measured beside the loss. With "loss" among it, an evaluation takes one forward pass instead of two.
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
    # Whether each pixel of an image has a label of its own, which augmentation has to move with it.
    is_dense: bool = False


def of_outputs(
    criterion: Callable[..., Tensor], ignored: int | None = None
) -> Callable[[nn.Module, Batch], tuple[Tensor, Count]]:
    """The loss of a task that compares outputs with labels by `criterion`."""

    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Count]:
        inputs, labels = batch
        return criterion(model(inputs), labels, reduction="sum"), counted(labels, ignored)

    return loss


def counted(labels: Tensor, ignored: int | None) -> Count:
    """How many labels count; a number, for which no GPU is waited for, if all of them do."""
    return labels.numel() if ignored is None else (labels != ignored).sum()


def counts_all(task: Task) -> bool:
    """Whether the number of labels alone tells how much a batch weighs."""
    return task.criterion is not None and task.ignored is None


def has_loss_of_each(task: Task) -> bool:
    """Whether the criterion gives each label's loss, by reduction="none"."""
    if task.criterion is None:
        return False
    parameters = inspect.signature(task.criterion).parameters.values()
    return any(p.name == "reduction" or p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)


def mean_loss(task: Task, model: Callable[..., Any], batch: Batch) -> tuple[Tensor, Count]:
    """The mean loss of a batch, 0 if none of its labels counts, and how many do."""
    inputs, labels = batch
    if task.criterion is not None:
        return mean_criterion(task, model(inputs), labels)
    measured = task.loss(model, batch)  # type: ignore[arg-type]
    if isinstance(measured, Tensor):
        return measured, len(labels)
    total, count = measured
    return total / at_least_one(count), count


def mean_criterion(task: Task, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Count]:
    """`mean_loss` of a task whose loss is a function of (outputs, labels)."""
    assert task.criterion is not None
    if task.ignored is None:
        return task.criterion(outputs, labels), labels.numel()
    count = (labels != task.ignored).sum()
    return task.criterion(outputs, labels, reduction="sum") / count.clamp(min=1), count


def at_least_one(count: Count) -> Count:
    """A count to divide by: the sum over no labels is 0, and so is their mean."""
    return count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)


def measure(task: Task, model: nn.Module, batch: Batch) -> dict[str, Amount]:
    """The loss and all metrics of a batch, as they add up over batches."""
    amounts: dict[str, Amount] = dict(task.metrics(model, batch))
    if "loss" not in amounts:
        mean, count = mean_loss(task, model, batch)
        amounts["loss"] = (mean * count, count)
    return amounts


def add(totals: Totals, amounts: Totals) -> dict[str, Amount]:
    """The totals with those of one more batch, in 64 bits."""
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
    """A number or tensor in float64, or int64 if it counts something."""
    tensor = torch.as_tensor(value).detach()
    return tensor.to(torch.float64 if tensor.is_floating_point() else torch.int64)


def finish(task: Task, totals: Totals) -> dict[str, float]:
    """The mean loss and the task's metrics, from the sums over all batches."""
    return {"loss": ratio("loss", totals["loss"])} | {k: float(v) for k, v in task.finish(totals).items()}


def goodness(best: Best, value: float) -> float:
    """A number that is larger for the better of two values of a metric; the least of all for NaN."""
    _, direction = best
    if math.isnan(value):
        return -math.inf
    return value if direction == "max" else -value
