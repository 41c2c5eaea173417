"""Settings of the task: what is learnt."""

from __future__ import annotations

from dataclasses import dataclass

from flare_dist.errors import unknown_choice
from flare_dist.tasks.builtin import TASKS
from flare_dist.tasks.task import Task

AUTO = "auto"


def find_task(name: str) -> Task:
    """Find the task of this name; ValueError that names task.name if there is none."""
    if name not in TASKS:
        raise unknown_choice("task.name", name, [AUTO, *TASKS])
    return TASKS[name]


@dataclass(frozen=True)
class TaskConfig:
    """Choose what is learnt.

    Args:
        name: auto (the natural one of the data set: next_token of shakespeare and of text
            without labels, classification of the others),
            classification, next_token, segmentation (a class for each pixel) or regression.
    """

    name: str = AUTO

    def __post_init__(self) -> None:
        if self.name != AUTO:
            find_task(self.name)
