"""The metrics of a task: amounts that add up over batches, and the numbers that come of their sums."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flare_dist.errors import reason_in_code
from flare_dist.tasks.batch import pair, scores_of
from flare_dist.tasks.losses import mean_loss
from flare_dist.tasks.task import Amount, Batch, Best, Count, Task, Totals, ratio

if TYPE_CHECKING:
    from torchmetrics import Metric


def measure_all(task: Task, model: nn.Module, batches: Iterable[Batch], device: torch.device) -> dict[str, float]:
    """Measure the mean loss and all metrics over batches that lie on `device`, in one forward pass of each.

    {} if there are no batches, as of a group none of whose examples can be read.
    """
    totals: dict[str, Amount] = {}
    observed = Observed(task, device)
    with observed.watching(model):
        for batch in batches:
            totals = add(totals, measure(task, model, batch))
            observed.update(batch)
    return finish(task, totals) | observed.compute() if totals else {}


class Observed:
    """Update the torchmetrics of a task with what the model returned last."""

    def __init__(self, task: Task, device: torch.device) -> None:
        self.metrics = {name: metric.to(device) for name, metric in task.torchmetrics.items()}
        self._outputs: Any = None
        for metric in self.metrics.values():
            metric.reset()
            # Rank 0 evaluates alone, and would wait for the others for ever; metrics may be made of metrics.
            for each in metric.modules():
                each.distributed_available_fn = _alone

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Keep the outputs of each forward pass of `model`, which needs no second pass then."""
        handles = [model.register_forward_hook(self._keep)] if self.metrics else []
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _keep(self, model: nn.Module, inputs: Any, outputs: Any) -> None:
        self._outputs = scores_of(outputs)

    def update(self, batch: Batch) -> None:
        """Take in the labels of the batch that has just gone through the model."""
        for name, metric in self.metrics.items():
            with _named(name):
                metric.update(self._outputs, pair(batch)[1])

    def compute(self) -> dict[str, float]:
        """Return each metric over all batches. Warnings that some class has no labels are left out: NaN says it."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return {name: _computed(name, metric) for name, metric in self.metrics.items()}


def _computed(name: str, metric: Metric) -> float:
    """Compute one metric; ValueError that names task.metrics if it is not one number."""
    with _named(name):
        value = metric.compute()
    if isinstance(value, Tensor) and value.numel() != 1:
        problem = f"a tensor of shape {list(value.shape)}; take the mean over the classes (average='macro')"
    elif not isinstance(value, Tensor | int | float):
        problem = f"{type(value).__name__}; choose one of its values"
    else:
        return float(value)
    raise ValueError(f"task.metrics: {name} must be one number, got {problem}")


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Raise ValueError that names the metric if its code fails."""
    try:
        yield
    except Exception as error:  # whatever somebody's code may raise
        raise ValueError(f"task.metrics: {name} fails: {reason_in_code(error)}") from error


def _alone() -> bool:
    """Tell torchmetrics that there are no other ranks."""
    return False


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
    return with_loss(totals, task.finish(totals))


def with_loss(totals: Totals, finished: Mapping[str, float]) -> dict[str, float]:
    """Put the mean loss before what a task's `finish` made of the sums, as plain numbers."""
    return {"loss": ratio("loss", totals["loss"])} | {name: float(value) for name, value in finished.items()}


def goodness(best: Best, value: float) -> float:
    """Map a metric to a number that is larger for the better of two values; NaN becomes the least of all."""
    _, direction = best
    if math.isnan(value):
        return -math.inf
    return value if direction == "max" else -value
