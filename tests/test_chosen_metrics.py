"""Metrics by torchmetrics, compared with those of scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics
from torch import Tensor, nn

from flare_dist.comm.world import World
from flare_dist.tasks.builtin import CLASSIFICATION, REGRESSION, SEGMENTATION
from flare_dist.tasks.chosen_metrics import METRICS
from flare_dist.tasks.metrics import measure_all
from flare_dist.tasks.task import Batch, Task
from tests.ranks import run_ranks, single

CLASSES = 4
CPU = torch.device("cpu")


def measured(task: Task, kind: str, batches: list[Batch], classes: int, names: list[str]) -> dict[str, float]:
    """Measure batches whose inputs are the outputs."""
    observed = {name: METRICS[kind][name](classes) for name in names}
    return measure_all(task._replace(torchmetrics=observed), nn.Identity(), batches, CPU)


def scored(present: int = CLASSES) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(3)
    labels = torch.randint(present, (60,), generator=draw)
    scores = torch.randn(60, CLASSES, generator=draw) + 1.5 * nn.functional.one_hot(labels, CLASSES)
    return scores, labels


def in_batches(scores: Tensor, labels: Tensor) -> list[Batch]:
    return list(zip(scores.split(13), labels.split(13)))


def test_metrics_of_classes_are_scikit_learn_s() -> None:
    scores, labels = scored()
    names = ["balanced_accuracy", "f1", "precision", "kappa", "matthews", "auroc", "average_precision"]
    found = measured(CLASSIFICATION, "classification", in_batches(scores, labels), CLASSES, names)
    predicted = scores.argmax(1)
    one_hot = nn.functional.one_hot(labels, CLASSES)
    shares = scores.softmax(1)
    expected = {
        "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(labels, predicted),
        "f1": sklearn_metrics.f1_score(labels, predicted, average="macro"),
        "precision": sklearn_metrics.precision_score(labels, predicted, average="macro"),
        "kappa": sklearn_metrics.cohen_kappa_score(labels, predicted),
        "matthews": sklearn_metrics.matthews_corrcoef(labels, predicted),
        "auroc": sklearn_metrics.roc_auc_score(labels, shares, multi_class="ovr", average="macro"),
        "average_precision": sklearn_metrics.average_precision_score(one_hot, shares, average="macro"),
    }
    assert {name: found[name] for name in names} == pytest.approx(expected, abs=1e-5)
    assert found["accuracy"] == pytest.approx((predicted == labels).double().mean().item())


def test_a_class_without_labels_is_no_zero_in_a_mean_over_classes() -> None:
    """A group or a client that lacks a class would seem to do badly."""
    scores, labels = scored(present=2)
    names = ["balanced_accuracy", "auroc"]
    found = measured(CLASSIFICATION, "classification", in_batches(scores, labels), CLASSES, names)
    of_each = [sklearn_metrics.roc_auc_score(labels == c, scores.softmax(1)[:, c]) for c in range(2)]
    assert found["auroc"] == pytest.approx(np.mean(of_each), abs=1e-5)
    with np.errstate(all="ignore"):
        recall = [(scores.argmax(1)[labels == c] == c).double().mean().item() for c in range(2)]
    assert found["balanced_accuracy"] == pytest.approx(np.mean(recall), abs=1e-6)


def test_ranking_within_one_class_is_not_a_number() -> None:
    scores, labels = scored(present=1)
    assert math.isnan(measured(CLASSIFICATION, "classification", [(scores, labels)], CLASSES, ["auroc"])["auroc"])


def test_ignored_pixels_count_in_no_metric() -> None:
    labels = torch.tensor([[[0, 0, 1, -100]]])
    scores = nn.functional.one_hot(torch.tensor([[[0, 1, 1, 1]]]), 2).permute(0, 3, 1, 2).float()
    found = measured(SEGMENTATION, "segmentation", [(scores, labels)], 2, ["balanced_accuracy", "f1"])
    assert found["balanced_accuracy"] == pytest.approx(0.75)
    assert found["f1"] == pytest.approx(2 / 3)


def test_metrics_of_numbers_are_scikit_learn_s() -> None:
    draw = torch.Generator().manual_seed(0)
    labels = torch.randn(40, 2, generator=draw) + 3
    outputs = labels + 0.3 * torch.randn(40, 2, generator=draw)
    names = list(METRICS["regression"])
    found = measured(REGRESSION, "regression", in_batches(outputs, labels), 2, names)
    expected = {
        "mse": sklearn_metrics.mean_squared_error(labels, outputs),
        "mape": sklearn_metrics.mean_absolute_percentage_error(labels, outputs),
        "r2": sklearn_metrics.r2_score(labels, outputs),
        "explained_variance": sklearn_metrics.explained_variance_score(labels, outputs),
    }
    assert {name: found[name] for name in names} == pytest.approx(expected, abs=1e-4)


def test_a_second_evaluation_begins_anew() -> None:
    scores, labels = scored()
    task = CLASSIFICATION._replace(torchmetrics={"f1": METRICS["classification"]["f1"](CLASSES)})
    first = measure_all(task, nn.Identity(), [(scores[:20], labels[:20])], CPU)
    measure_all(task, nn.Identity(), [(scores[20:], labels[20:])], CPU)
    assert measure_all(task, nn.Identity(), [(scores[:20], labels[:20])], CPU) == first


def measure_on_rank_0(world: World) -> float | None:
    scores, labels = scored()
    accuracy = METRICS["classification"]["balanced_accuracy"](CLASSES)
    task = CLASSIFICATION._replace(torchmetrics={"twice": accuracy + accuracy})
    return measure_all(task, nn.Identity(), [(scores, labels)], CPU)["twice"] if world.rank == 0 else None


def test_one_rank_measures_without_the_others() -> None:
    alone, nothing = run_ranks(measure_on_rank_0, 2)
    assert nothing is None
    assert alone == single(measure_on_rank_0)


def test_one_number_has_no_r_squared() -> None:
    metric = METRICS["regression"]["r2"](1)
    metric.update(torch.tensor([[1.0]]), torch.tensor([[2.0]]))
    assert metric.compute().isnan()
    metric.update(torch.tensor([[3.0]]), torch.tensor([[3.0]]))
    assert metric.compute() == -1
