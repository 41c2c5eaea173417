"""The training loss of a task: its mean over the labels that count, and how many do."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from flare_dist.tasks.batch import count_examples, pair, scores_of
from flare_dist.tasks.task import Batch, Count, Task, Totals


@dataclass(frozen=True)
class OfOutputs:
    """Compute the loss of a task that compares outputs with labels by `criterion`, without the `ignored` labels."""

    criterion: Callable[..., Tensor]
    ignored: int | None = None

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Count]:
        inputs, labels = pair(batch)
        return self.criterion(scores_of(model(inputs)), labels, reduction="sum"), counted(labels, self.ignored)


@dataclass(frozen=True)
class Judged:
    """Measure a batch in one pass: `judge` is given outputs, labels and how many count; the loss by `criterion`."""

    judge: Callable[[Tensor, Tensor, Count], Totals]
    criterion: Callable[..., Tensor]
    ignored: int | None = None

    def __call__(self, model: nn.Module, batch: Batch) -> Totals:
        inputs, labels = pair(batch)
        outputs = scores_of(model(inputs))
        count = counted(labels, self.ignored)
        loss = self.criterion(outputs, labels, reduction="sum")
        return {"loss": (loss, count), **self.judge(outputs, labels, count)}


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
    if task.criterion is not None:
        inputs, labels = pair(batch)
        return mean_criterion(task, scores_of(model(inputs)), labels)
    measured = task.loss(model, batch)  # type: ignore[arg-type]
    if isinstance(measured, Tensor):
        return measured, count_examples(batch)
    total, count = measured
    return total / at_least_one(count), count


def mean_criterion(task: Task, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Count]:
    """Compute what `mean_loss` does from outputs, for a task with a criterion."""
    if task.criterion is None:
        raise ValueError("task.name: the task has no criterion(outputs, labels); use mean_loss")
    if task.ignored is None:
        return task.criterion(outputs, labels), labels.numel()
    count = (labels != task.ignored).sum()
    return task.criterion(outputs, labels, reduction="sum") / count.clamp(min=1), count


def at_least_one(count: Count) -> Count:
    """Return a count to divide by: the sum over no labels is 0, and so is their mean."""
    return count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)
