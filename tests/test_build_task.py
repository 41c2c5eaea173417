"""Tasks with the loss, class weights, metrics and choice of the best that a configuration sets."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from flare_dist.tasks.build_task import build_task
from flare_dist.tasks.config import TaskConfig
from flare_dist.tasks.losses import has_loss_of_each, mean_loss
from flare_dist.tasks.metrics import measure_all
from tests.helpers.tasks import CLASSES, batch_of, model_of

CPU = torch.device("cpu")
MINE = """
import torch.nn.functional as F
from flare_dist import Task
from torchmetrics import PearsonCorrCoef
from torchmetrics.classification import MulticlassRecall

def mean_only(outputs, labels):
    return F.cross_entropy(outputs, labels, label_smoothing=0.1)

def smoothed(outputs, labels, reduction="mean"):
    return F.cross_entropy(outputs, labels, label_smoothing=0.1, reduction=reduction)

def recall(classes):
    return MulticlassRecall(classes, average="micro")

def undirected(classes):
    return PearsonCorrCoef()

def f1(classes):
    return MulticlassRecall(classes)

def accuracy(classes):
    return MulticlassRecall(classes)

def name(classes):
    return MulticlassRecall(classes)

def no_metric(classes):
    return {}

def of_errors():
    return Task(lambda model, batch: F.mse_loss(model(batch[0]), batch[1]), best=("errors", "min"))
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Write the user's module; returns its name."""
    (tmp_path / "own_judges.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "own_judges"


@pytest.mark.parametrize(
    ("loss", "expected"), [("mae", F.l1_loss), ("huber", F.huber_loss), ("smooth_l1", F.smooth_l1_loss)]
)
def test_a_named_loss_trains_and_is_measured(loss: str, expected: object) -> None:
    task = build_task(TaskConfig(loss=loss), "regression", None, 2)
    model = model_of("regression")
    inputs, labels = batch_of("regression")
    value = expected(model(inputs), labels).item()  # type: ignore[operator]
    assert mean_loss(task, model, (inputs, labels))[0].item() == pytest.approx(value)
    found = measure_all(task, model, zip(inputs.split(3), labels.split(3)), CPU)
    assert found["loss"] == pytest.approx(value)
    assert found["rmse"] == pytest.approx(math.sqrt(F.mse_loss(model(inputs), labels).item()))
    assert has_loss_of_each(task)


def test_a_loss_of_the_user_s_own_is_taken_as_a_mean(mine: str) -> None:
    model = model_of("classification")
    batch = batch_of("classification")
    value = F.cross_entropy(model(batch[0]), batch[1], label_smoothing=0.1).item()
    for loss, opens_fast_paths in ((f"{mine}:smoothed", True), (f"{mine}:mean_only", False)):
        task = build_task(TaskConfig(loss=loss), "classification", None, 3)
        assert mean_loss(task, model, batch)[0].item() == pytest.approx(value)
        pieces = zip(batch[0].split(3), batch[1].split(3))
        assert measure_all(task, model, pieces, CPU)["loss"] == pytest.approx(value)
        assert has_loss_of_each(task) is opens_fast_paths


def test_a_loss_takes_options() -> None:
    task = build_task(TaskConfig(loss_options={"label_smoothing": 0.1}), "classification", None, 3)
    outputs, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    assert task.criterion is not None
    assert torch.equal(task.criterion(outputs, labels), F.cross_entropy(outputs, labels, label_smoothing=0.1))
    assert has_loss_of_each(task)
    with pytest.raises(
        ValueError, match=r"^task\.loss_options\.smoothing: cross_entropy takes no such option, got 0\.1"
    ):
        build_task(TaskConfig(loss_options={"smoothing": 0.1}), "classification", None, 3)


def test_perplexity_is_not_measured_of_another_loss_than_the_cross_entropy(mine: str) -> None:
    task = build_task(TaskConfig(loss=f"{mine}:smoothed"), "next_token", None, 5)
    assert "perplexity" not in measure_all(task, model_of("next_token"), [batch_of("next_token")], CPU)


def test_balanced_weights_come_of_the_training_labels_of_all_clients() -> None:
    labels = torch.tensor([0, 0, 0, 1])
    task = build_task(TaskConfig(class_weights="balanced"), "classification", labels, 2)
    scores = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    assert task.criterion is not None
    expected = (F.cross_entropy(scores[:1], labels[:1]) * 2 / 3 + 2 * F.cross_entropy(scores[1:], labels[3:])) / 2
    assert task.criterion(scores, labels[[0, 3]]).item() == pytest.approx(expected.item())


def test_metrics_that_are_asked_for_are_measured_once(mine: str) -> None:
    config = TaskConfig(metrics=("accuracy", "f1", f"{mine}:recall"), best="f1")
    task = build_task(config, "classification", None, CLASSES)
    assert list(task.torchmetrics) == ["f1", "recall"]
    twice = build_task(TaskConfig(metrics=("f1", "f1")), "classification", None, CLASSES)
    assert list(twice.torchmetrics) == ["f1"]
    assert task.best == ("f1", "max")
    found = measure_all(task, model_of("classification"), [batch_of("classification")], CPU)
    assert found["recall"] == pytest.approx(found["accuracy"])


def test_the_best_is_the_least_of_what_should_be_small() -> None:
    assert build_task(TaskConfig(best="loss"), "classification", None, 3).best == ("loss", "min")
    assert build_task(TaskConfig(best="mape", metrics=("mape",)), "regression", None, 1).best == ("mape", "min")
    assert build_task(TaskConfig(best="accuracy:min"), "classification", None, 3).best == ("accuracy", "min")


def test_the_best_of_a_task_of_one_s_own_keeps_its_direction(mine: str) -> None:
    name = f"{mine}:of_errors"
    assert build_task(TaskConfig(name=name, best="errors"), name, None, 3).best == ("errors", "min")
    with pytest.raises(ValueError, match=r"^task\.best: other does not say which way is better; write other:max or"):
        build_task(TaskConfig(name=name, best="other"), name, None, 3)


def f1(classes: int) -> None:
    """Have the name of another metric."""


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("regression", {"loss": "cross_entropy"}, r"task\.loss: unknown choice, got 'cross_entropy'"),
        ("regression", {"class_weights": "balanced"}, r"task\.class_weights: needs plain cross_entropy of"),
        ("next_token", {"class_weights": "balanced"}, r"task\.class_weights: needs plain cross_entropy of"),
        ("classification", {"class_weights": (1.0, 2.0)}, r"task\.class_weights: must be 3 numbers, .*, got 2"),
        ("classification", {"class_weights": "balanced"}, r"task\.class_weights: balanced counts labels, and these"),
        ("classification", {"metrics": ("mape",)}, r"task\.metrics: unknown choice, got 'mape'"),
        ("classification", {"metrics": ("acuracy",)}, r"task\.metrics: unknown choice, got 'acuracy'; did you mean ac"),
        (
            "classification",
            {"metrics": ("f1", "own_judges:f1")},
            r"task\.metrics: the name f1 is taken by f1, got own_jud",
        ),
        (
            "regression",
            {"metrics": ("own_judges:f1", "tests.test_build_task:f1")},
            r"task\.metrics: the name f1 is taken by own_judges:f1, got tests.test_build_task:f1; give y",
        ),
        (
            "classification",
            {"metrics": ("own_judges:accuracy",)},
            r"task\.metrics: the name accuracy is taken by the task, got own_judges:accuracy",
        ),
        ("regression", {"metrics": ("own_judges:name",)}, r"task\.metrics: the name name is taken by the log of a run"),
        ("classification", {"metrics": ("own_judges:no_metric",)}, r"task\.metrics: .* must return a torchmetrics"),
        ("classification", {"best": "f1"}, r"task\.best: unknown choice, got 'f1'; choose from loss, accuracy"),
        ("classification", {"best": "accuracy:up"}, r"task\.best: must end in max or min, got accuracy:up"),
        (
            "classification",
            {"metrics": ("own_judges:undirected",), "best": "undirected"},
            r"task\.best: undirected does not say which way is better; write undirected:max or undirected:min",
        ),
    ],
)
def test_what_cannot_be_had_is_one_line(mine: str, name: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        build_task(TaskConfig(name=name, **settings), name, None, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("weights", [(0.0, 0.0), (1.0, -1.0), (1.0, math.inf)])
def test_weights_must_be_usable(weights: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"^task\.class_weights: must be 0 or above, finite and not all 0, got "):
        TaskConfig(class_weights=weights)
