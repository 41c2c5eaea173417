"""Trial of a task with a model before training: whether its loss, criterion and metrics are what they must be."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from flare_dist.errors import reason_in_code
from flare_dist.named import call
from flare_dist.preserved import preserved
from flare_dist.seeding import derive_seed, seeded
from flare_dist.tasks.batch import pair
from flare_dist.tasks.losses import OfOutputs, mean_loss
from flare_dist.tasks.metrics import add, measure, measure_all, with_loss
from flare_dist.tasks.task import LOGGED, Batch, Task

KEY = "task.name"
CPU = torch.device("cpu")


def check_criterion(model: nn.Module, batch: Batch, task: Task) -> None:
    """Raise ValueError that names task.name if the task's loss and its criterion differ on `batch`.

    Steps are taken by the criterion if there is one, so another loss would silently have no effect. A loss that is made
    of the criterion cannot differ and is not tried.
    """
    if task.criterion is None or task.loss == OfOutputs(task.criterion, task.ignored):
        return
    by_loss = _mean_loss(task._replace(criterion=None), model, batch)
    by_criterion = _mean_loss(task, model, batch)
    if not math.isclose(by_loss, by_criterion, rel_tol=1e-3, abs_tol=1e-6) and math.isfinite(by_loss + by_criterion):
        raise ValueError(
            f"{KEY}: loss and criterion must agree, got means {by_loss:.6g} and {by_criterion:.6g} for "
            f"{len(pair(batch)[1])} examples; mend one of them, or leave criterion None"
        )


def _mean_loss(task: Task, model: nn.Module, batch: Batch) -> float:
    """Evaluate the mean loss of `batch`, with the same draws at each call."""
    try:
        with seeded(derive_seed(0, "trial")), preserved(model), torch.no_grad():
            mean, _ = mean_loss(task, model.eval(), batch)
            return float(mean)
    except Exception as error:  # whatever somebody's code may raise
        raise ValueError(f"{KEY}: its loss fails on {len(pair(batch)[1])} examples: {reason_in_code(error)}") from error


def check_task(model: nn.Module, batch: Batch, task: Task) -> None:
    """Raise ValueError that names task.name if the user's task does not give what a task must, tried on `batch`."""
    with seeded(derive_seed(0, "trial")), preserved(model):
        _check_loss(call(KEY, "loss", task.loss, model.train(), batch))
        with torch.no_grad():
            _check_metrics(call(KEY, "metrics", task.metrics, model.eval(), batch))
            totals = call(KEY, "metrics", lambda: add({}, measure(task, model, batch)))
        finished = call(KEY, "finish", task.finish, totals)
        if not isinstance(finished, Mapping):
            raise ValueError(f"{KEY}: finish must return a number for each name, got {finished!r}; return a dict")
        names = [*call(KEY, "finish", with_loss, totals, finished), *task.torchmetrics]
    _check_names(names)
    if task.best[0] not in names:
        raise ValueError(f"{KEY}: best must be one of its metrics, got {task.best[0]}; choose from {', '.join(names)}")


def _check_loss(loss: Any) -> None:
    if not _is_loss(loss):
        raise ValueError(
            f"{KEY}: loss must return a scalar tensor or (sum, count), got {loss!r}; for example "
            "(F.mse_loss(outputs, labels, reduction='sum'), labels.numel())"
        )


def _check_metrics(metrics: Any) -> None:
    if not isinstance(metrics, Mapping) or not all(map(_is_amount, metrics.values())):
        raise ValueError(
            f"{KEY}: metrics must return a tensor or (sum, count) for each name, got {metrics!r}; for example "
            "{'accuracy': (right.sum(), labels.numel())}"
        )


def _check_names(names: Iterable[Any]) -> None:
    """Raise ValueError that names task.name if a metric has no name, or one that the log of a run uses."""
    for name in names:
        if not isinstance(name, str) or name in LOGGED:
            problem = f"metrics must have names that the log of a run does not use, got {name!r}"
            raise ValueError(f"{KEY}: {problem}; rename it")


def check_torchmetrics(model: nn.Module, batch: Batch, task: Task) -> None:
    """Raise ValueError that names task.metrics if a torchmetric fails on `batch`, or gives anything but one number.

    Each needs a name of its own beside what the task measures by itself.
    """
    if not task.torchmetrics:
        return
    alone = task._replace(torchmetrics={})
    with seeded(derive_seed(0, "trial")), preserved(model), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a metric for which two examples are few
        measured = measure_all(alone, model.eval(), [batch], CPU)
        measure_all(task, model, [batch], CPU)
    taken = [name for name in task.torchmetrics if name in measured]
    if taken:
        raise ValueError(f"task.metrics: {taken[0]} is measured by the task itself; give the torchmetric another name")


def _is_loss(value: Any) -> bool:
    """Tell whether a value is a mean, or a sum beside how many labels it is of: none is fewer than no labels."""
    if isinstance(value, tuple):
        return len(value) == 2 and _is_scalar(value[0]) and _is_count(value[1])
    return _is_scalar(value)


def _is_amount(value: Any) -> bool:
    if isinstance(value, tuple):
        return len(value) == 2 and all(_is_number(part) or isinstance(part, Tensor) for part in value)
    return isinstance(value, Tensor)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, Tensor) and value.numel() == 1


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return (_is_scalar(value) or _is_number(value)) and float(value) >= 0
