"""Metrics of the built-in tasks."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flare_dist.config.config import Config
from flare_dist.tasks.builtin import NEXT_TOKEN, REGRESSION, SEGMENTATION, TASKS
from flare_dist.tasks.losses import OfOutputs
from flare_dist.tasks.metrics import add, finish, measure
from flare_dist.tasks.task import Amount


def test_iou_is_the_mean_over_the_classes_that_are_there() -> None:
    labels = torch.tensor([[[0, 0, 1, -100]]])
    scores = F.one_hot(torch.tensor([[[0, 1, 1, 3]]]), 4).permute(0, 3, 1, 2).float()
    found = finish(SEGMENTATION, add({}, measure(SEGMENTATION, nn.Identity(), (scores, labels))))
    assert (found["accuracy"], found["iou"]) == (pytest.approx(2 / 3), pytest.approx(0.5))


def test_regression_and_perplexity_are_of_all_examples_not_of_batches() -> None:
    outputs = torch.tensor([[1.0], [2.0], [5.0]])
    totals: dict[str, Amount] = {}
    for piece in outputs.split(2):
        totals = add(totals, measure(REGRESSION, nn.Identity(), (piece, torch.zeros_like(piece))))
    assert finish(REGRESSION, totals) == pytest.approx({"loss": 10, "mae": 8 / 3, "rmse": 10**0.5})
    one, none = torch.ones(()), torch.zeros(())
    assert NEXT_TOKEN.finish({"loss": (1e4 * one, 1), "accuracy": (none, 1)})["perplexity"] == math.inf
    assert Config().task.name == "auto"


@pytest.mark.parametrize("name", TASKS)
def test_the_loss_of_a_built_in_task_is_made_of_its_criterion(name: str) -> None:
    """So that no run has to try whether they agree."""
    task = TASKS[name]
    assert task.criterion is not None
    assert task.loss == OfOutputs(task.criterion, task.ignored)
