"""Settings of the task: what is learnt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from torch import nn

from flare_dist.errors import check_choice
from flare_dist.given import FROM_PYTHON, given_again
from flare_dist.named import Options, bind, find, is_own, made
from flare_dist.signatures import required_arguments
from flare_dist.tasks.builtin import CLASSIFICATION, TASKS
from flare_dist.tasks.chosen_losses import BALANCED, check_weight_values
from flare_dist.tasks.task import ClassOf, Task

AUTO = "auto"
NONE = "none"
KEY = "task.name"
EXAMPLE = "flare_dist.Task(loss=lambda model, batch: torch.nn.functional.mse_loss(model(batch[0]), batch[1]))"


def find_task(name: Any, options: Options | None = None) -> Task:
    """Find the task of this name, or make the user's own; ValueError that names task.name if there is none."""
    _refuse_loss(name, options)
    task: Task = made(KEY, name, {AUTO: CLASSIFICATION} | TASKS, options or {}, Task, EXAMPLE)
    metric, direction = task.best if isinstance(task.best, tuple) and len(task.best) == 2 else (task.best, None)
    if direction not in ("max", "min") or not isinstance(metric, str):
        raise ValueError(f'{KEY}: best must be a metric and "max" or "min", got {task.best!r}; write ("loss", "min")')
    _check_fields(task)
    return task


def _refuse_loss(name: Any, options: Options | None) -> None:
    """Raise ValueError that names task.name if Python code gave a loss, which would be called without arguments."""
    if options or not isinstance(name, str) or not name.startswith(FROM_PYTHON):
        return
    given = given_again(KEY, name)
    function = given.forward if isinstance(given, nn.Module) else given
    if not callable(function):
        return
    needed = required_arguments(function)
    if needed:
        got = f"{name.removeprefix(FROM_PYTHON)}({', '.join(needed)})"
        raise ValueError(
            f"{KEY}: task= takes a Task, or a function that returns one and whose arguments are under task.options, "
            f"got {got}; for example {EXAMPLE}"
        )


def _check_fields(task: Task) -> None:
    """Raise ValueError that names task.name if a field of a user's task is of another kind than it must be."""
    for field_name in ("loss", "metrics", "finish", "check_labels", "outputs", "criterion"):
        given = getattr(task, field_name)
        if not callable(given) and not (given is None and field_name in ("outputs", "criterion")):
            raise ValueError(f"{KEY}: {field_name} must be a function, got {given!r}; for example {EXAMPLE}")
    if task.class_of not in (None, *get_args(ClassOf)):
        raise ValueError(
            f"{KEY}: class_of must be one of {', '.join(get_args(ClassOf))} or None, got {task.class_of!r}; write what "
            "has one class each, or None if labels are no classes"
        )
    if not isinstance(task.torchmetrics, Mapping):
        kind = type(task.torchmetrics).__name__
        raise ValueError(f"{KEY}: torchmetrics must be metrics by name, got {kind}; write {{name: metric}}")
    strange = next((name for name, metric in task.torchmetrics.items() if not hasattr(metric, "update")), None)
    if strange is not None:
        kind = type(task.torchmetrics[strange]).__name__
        raise ValueError(f"{KEY}: torchmetrics[{strange!r}] must be a torchmetrics.Metric, got {kind}")


@dataclass(frozen=True)
class TaskConfig:
    """Choose what is learnt.

    Args:
        name: auto (the natural one of the data set: next_token of shakespeare and of text without labels,
            classification of the others), classification, next_token, segmentation (a class for each pixel),
            regression, or your own as package.module:callable, which is called with (**options) and returns a
            flare_dist.Task.
        options: keyword arguments of your own task.
        loss: auto (the task's: cross_entropy, of regression mse), mae, huber or smooth_l1 of regression, or your own as
            package.module:callable, which is called with (outputs, labels) and gives their mean; if it takes reduction
            as the losses of torch.nn.functional do, the fast paths stay open.
        loss_options: keyword arguments of the loss, such as label_smoothing of cross_entropy.
        class_weights: of classification and segmentation: none, balanced (n / (classes * labels of the class), counted
            over the training examples of all clients) or a list of one number for each class; they multiply the loss.
        metrics: more metrics, logged as test_<name>: of classes balanced_accuracy, f1, precision, kappa, matthews, of
            classification auroc, average_precision and calibration_error too, of regression mse, mape, r2 and
            explained_variance, or your own as package.module:callable, which is called with the number of classes and
            returns a torchmetrics.Metric.
        best: auto (accuracy, of segmentation iou, of regression rmse) or the metric by which models are compared, as
            NAME:max or NAME:min if the metric does not say which is better.
    """

    name: str = AUTO
    options: Options = field(default_factory=dict, hash=False)
    loss: str = AUTO
    loss_options: Options = field(default_factory=dict, hash=False)
    class_weights: str | tuple[float, ...] = NONE
    metrics: tuple[str, ...] = ()
    best: str = AUTO

    def __post_init__(self) -> None:
        if self.name != AUTO:
            find_task(self.name, self.options)
        elif self.options:
            raise ValueError(
                f"task.options.{next(iter(self.options))}: the data's own task takes no options; name yours in {KEY}"
            )
        # Imported now, so that a run's configuration has the directory in which they were found.
        if is_own(self.loss, ()):
            bind("task.loss", self.loss, find("task.loss", self.loss, {}), self.loss_options, ["outputs", "labels"])
        for metric in self.metrics:
            if is_own(metric, ()):
                find("task.metrics", metric, {})
        if isinstance(self.class_weights, str):
            check_choice("task.class_weights", self.class_weights, (NONE, BALANCED))
        else:
            check_weight_values(self.class_weights)


def is_users(name: str) -> bool:
    """Tell whether a task is the user's own."""
    return is_own(name, TASKS)
