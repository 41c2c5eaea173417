"""The record of a task: amounts add up over pieces of a batch."""

from __future__ import annotations

import pytest
import torch

import flare_dist
from flare_dist.tasks.builtin import TASKS
from flare_dist.tasks.losses import mean_loss
from flare_dist.tasks.metrics import add, finish, measure
from flare_dist.tasks.task import Amount, Task
from tests.helpers.tasks import (
    batch_of,
    model_of,
)


def test_a_task_is_public() -> None:
    assert flare_dist.Task is Task


@pytest.mark.parametrize("name", TASKS)
def test_pieces_of_a_batch_add_up_to_the_whole(name: str) -> None:
    task, model, (inputs, labels) = TASKS[name], model_of(name), batch_of(name)
    whole = finish(task, add({}, measure(task, model, (inputs, labels))))
    totals: dict[str, Amount] = {}
    for piece in zip(inputs.split(4), labels.split(4)):
        totals = add(totals, measure(task, model, piece))
    assert finish(task, totals) == pytest.approx(whole, rel=1e-6)
    assert task.best[0] in whole
    mean, count = mean_loss(task, model, (inputs, labels))
    assert whole["loss"] == pytest.approx(mean.item(), rel=1e-6)
    assert count == (labels != -100).sum()


def test_a_metric_that_is_no_number_needs_a_finish() -> None:
    totals: dict[str, Amount] = {"loss": (torch.ones(()), 1), "confusion": torch.ones(2, 2)}
    with pytest.raises(ValueError, match=r"^task\.name: metric confusion must be one number, got shape \(2, 2\); "):
        finish(Task(TASKS["regression"].loss), totals)
    assert finish(Task(TASKS["regression"].loss, finish=lambda totals: {"size": 4}), totals) == {"loss": 1, "size": 4}
