"""Settings of the task: what is learnt."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from flare_dist.named import Options, is_own, made
from flare_dist.tasks.builtin import CLASSIFICATION, TASKS
from flare_dist.tasks.task import Task

AUTO = "auto"
KEY = "task.name"
EXAMPLE = "flare_dist.Task(loss=lambda model, batch: torch.nn.functional.mse_loss(model(batch[0]), batch[1]))"


def find_task(name: Any, options: Options | None = None) -> Task:
    """Find the task of this name, or make the user's own; ValueError that names task.name if there is none."""
    task: Task = made(KEY, name, {AUTO: CLASSIFICATION} | TASKS, options or {}, Task, EXAMPLE)
    metric, direction = task.best if isinstance(task.best, tuple) and len(task.best) == 2 else (task.best, None)
    if direction not in ("max", "min") or not isinstance(metric, str):
        raise ValueError(f'{KEY}: best must be a metric and "max" or "min", got {task.best!r}; write ("loss", "min")')
    return task


@dataclass(frozen=True)
class TaskConfig:
    """Choose what is learnt.

    Args:
        name: auto (the natural one of the data set: next_token of shakespeare, classification of the others),
            classification, next_token, segmentation (a class for each pixel), regression, or your own as
            package.module:callable, which is called with (**options) and returns a flare_dist.Task.
        options: keyword arguments of your own task.
    """

    name: str = AUTO
    options: Options = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if self.name != AUTO:
            find_task(self.name, self.options)
        elif self.options:
            raise ValueError(
                f"task.options.{next(iter(self.options))}: the data's own task takes no options; name yours in {KEY}"
            )


def is_users(name: str) -> bool:
    """Tell whether a task is the user's own."""
    return is_own(name, TASKS)
