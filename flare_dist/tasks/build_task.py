"""Build the task of a run: the named one, with the loss, class weights, metrics and choice of the best that are set."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from flare_dist.errors import reason_in_code, unknown_choice
from flare_dist.named import bind, find
from flare_dist.tasks.builtin import TASKS, with_perplexity
from flare_dist.tasks.chosen_losses import (
    BALANCED,
    LOSSES,
    Criterion,
    MeanOnly,
    WeightedCrossEntropy,
    balanced_weights,
    check_weights,
)
from flare_dist.tasks.config import AUTO, NONE, TaskConfig, find_task
from flare_dist.tasks.losses import Judged, OfOutputs
from flare_dist.tasks.task import LOGGED, Best, Task, ratios

if TYPE_CHECKING:
    from torchmetrics import Metric

MEASURED = {  # by the built-in tasks as they are
    "classification": ("loss", "accuracy"),
    "next_token": ("loss", "accuracy", "perplexity"),
    "segmentation": ("loss", "accuracy", "iou"),
    "regression": ("loss", "mae", "rmse"),
}
LESS_IS_BETTER = ("loss", "perplexity", "mae", "rmse")  # of these


def build_task(config: TaskConfig, name: str, labels: Tensor | None, classes: int) -> Task:
    """Build the task `name` as `config` sets it.

    `labels` are those of all training examples, by which classes are balanced; None if they are not known. Raises
    ValueError that names the key under `task` that cannot be had.
    """
    task = find_task(name, config.options)
    criterion = _criterion(config, name, labels, classes)
    if criterion is not None:
        task = with_criterion(task, criterion)
    if config.metrics:
        task = task._replace(torchmetrics=dict(task.torchmetrics) | _metrics(config, name, task, classes))
    return task if config.best == AUTO else task._replace(best=_best(config.best, name, task))


def _criterion(config: TaskConfig, name: str, labels: Tensor | None, classes: int) -> Criterion | None:
    """Find the loss that is asked for; None for the task's own."""
    is_weighted = config.class_weights != NONE
    if config.loss == AUTO and not config.loss_options and not is_weighted:
        return None
    if name not in TASKS:
        key = "task.class_weights" if is_weighted else "task.loss"
        raise ValueError(f"{key}: {name} brings its own loss; leave it out, or choose from {', '.join(TASKS)}")
    if is_weighted:
        return _weighted(config, name, labels, classes)
    loss = next(iter(LOSSES[name])) if config.loss == AUTO else config.loss
    found = find("task.loss", loss, LOSSES[name])
    return bind("task.loss", loss, found, config.loss_options, ["outputs", "labels"])


def _weighted(config: TaskConfig, name: str, labels: Tensor | None, classes: int) -> WeightedCrossEntropy:
    """Make the cross-entropy with class weights, given or counted."""
    plain = config.loss in (AUTO, "cross_entropy") and not config.loss_options
    if name not in ("classification", "segmentation") or not plain:
        raise ValueError(
            f"task.class_weights: needs plain cross_entropy of classification or segmentation, got {name} with "
            f"task.loss={config.loss} and options {config.loss_options}; set none, or weigh in a loss of your own"
        )
    if config.class_weights != BALANCED:
        weights = tuple(map(float, config.class_weights))
    elif labels is None:
        raise ValueError(f"task.class_weights: {BALANCED} counts labels, and these data have none beside their items")
    else:
        weights = balanced_weights(labels, classes)
    check_weights(weights, classes)
    return WeightedCrossEntropy(weights)


def with_criterion(task: Task, criterion: Criterion) -> Task:
    """Give a built-in task another criterion.

    One that takes `reduction`, as those of torch.nn.functional do, keeps the fast paths open; another is
    (outputs, labels) -> the mean over the labels that count.
    """
    assert isinstance(task.metrics, Judged)
    finish = ratios if task.finish is with_perplexity else task.finish  # which is of the cross-entropy
    takes_reduction = "reduction" in inspect.signature(criterion).parameters
    summed = criterion if takes_reduction else MeanOnly(criterion, task.ignored)
    return task._replace(
        criterion=criterion if takes_reduction else None,
        loss=OfOutputs(summed, task.ignored),
        metrics=replace(task.metrics, criterion=summed),
        finish=finish,
    )


def _metrics(config: TaskConfig, name: str, task: Task, classes: int) -> dict[str, Metric]:
    """Build the requested metrics that the task does not report anyway, by the name of each one's function."""
    from flare_dist.tasks.chosen_metrics import METRICS  # torchmetrics, which takes seconds to import

    measured = MEASURED.get(name, ("loss",))
    asked = [metric for metric in dict.fromkeys(config.metrics) if metric not in measured]
    owners = dict.fromkeys(LOGGED, "the log of a run") | dict.fromkeys([*measured, *task.torchmetrics], "the task")
    for metric in asked:
        key = metric.rpartition(":")[2]
        if key in owners:
            problem = f"the name {key} is taken by {owners[key]}, got {metric}"
            raise ValueError(f"task.metrics: {problem}; give your function another name")
        owners[key] = metric
    built_in = METRICS.get(name, {})
    return {metric.rpartition(":")[2]: _metric(metric, built_in, measured, classes) for metric in asked}


def _metric(
    name: str, built_in: Mapping[str, Callable[[int], Metric]], measured: Sequence[str], classes: int
) -> Metric:
    """Make one metric; ValueError that names task.metrics if it is none of torchmetrics, or lists what there is."""
    import torchmetrics

    make = find("task.metrics", name, built_in, measured)
    try:
        metric = make(classes)
    except Exception as error:  # whatever somebody's code may raise
        raise ValueError(f"task.metrics: {name} fails for {classes} classes: {reason_in_code(error)}") from error
    if not isinstance(metric, torchmetrics.Metric):
        raise ValueError(
            f"task.metrics: {name} must return a torchmetrics.Metric, got {type(metric).__name__}; for example "
            "lambda num_classes: torchmetrics.classification.MulticlassF1Score(num_classes)"
        )
    return metric


def _best(asked: str, name: str, task: Task) -> Best:
    """Return the metric by which models are compared, written NAME or NAME:max or NAME:min."""
    metric, _, direction = asked.partition(":")
    if asked == task.best[0]:
        return task.best
    own = MEASURED.get(name, (*task.torchmetrics, metric))
    if metric not in (*own, *task.torchmetrics):
        raise unknown_choice("task.best", metric, [*own, *task.torchmetrics])
    if direction in ("max", "min"):
        return metric, direction
    if direction:
        raise ValueError(f"task.best: must end in max or min, got {asked}; write {metric}:max or {metric}:min")
    if metric in MEASURED.get(name, ()):
        return metric, "min" if metric in LESS_IS_BETTER else "max"
    more_is_better = task.torchmetrics[metric].higher_is_better if metric in task.torchmetrics else None
    if more_is_better is None:
        raise ValueError(f"task.best: {metric} does not say which way is better; write {metric}:max or {metric}:min")
    return metric, "max" if more_is_better else "min"
