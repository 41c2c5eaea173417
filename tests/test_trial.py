"""Trials of a model: they leave no trace, and a model that does not fit is refused before it is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassRecall

from flare_dist.models.registry import Shape, build
from flare_dist.models.task_trial import check_criterion, check_task, check_torchmetrics
from flare_dist.models.trial import check_fit, why_not_one
from flare_dist.rounds.build_run import load_parts
from flare_dist.tasks.builtin import CLASSIFICATION, TASKS
from flare_dist.tasks.config import TaskConfig
from flare_dist.tasks.task import Batch, Task
from tests.helpers.models import MNIST, linear
from tests.helpers.runs import tiny


def test_trying_a_model_leaves_its_statistics_alone() -> None:
    model = build("resnet18", "batch", (1, 8, 8), 10, seed=0, task=CLASSIFICATION)
    for name, buffer in model.named_buffers():
        assert (buffer == (1 if name.endswith("var") else 0)).all()


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")  # of a layer that has no inputs left
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("cnn", (1, 3, 3)),
        ("lenet", (1, 6, 6)),
        ("lenet", (1, 4, 28)),
        ("torchvision:squeezenet1_0", (3, 8, 8)),
        ("torchvision:resnet18", MNIST),
        ("tests.helpers.models:only_nine_inputs", MNIST),
        ("tests.helpers.models:one_class_too_many", MNIST),
        ("tests.helpers.models:two_outputs", MNIST),
        ("tests.helpers.models:two_outputs_while_training", MNIST),
        ("tests.helpers.models:too_many_arguments", MNIST),
        ("tests.helpers.models:half", MNIST),
        ("tests.helpers.models:broken", MNIST),
        ("tests.helpers.models:lazy_and_unreached", MNIST),
        ("tests.helpers.models:linear", (7,)),  # a text
    ],
)
def test_models_that_do_not_fit_are_refused(name: str, shape: Shape) -> None:
    with pytest.raises(ValueError, match=r"^model\.(name|options\.width): "):
        build(name, "group", shape, 10, seed=0, task=CLASSIFICATION)


def twice(outputs: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
    return 2 * F.cross_entropy(outputs, labels, reduction=reduction)


def users_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
    """Compute cross-entropy as a user would write it."""
    inputs, labels = batch
    return F.cross_entropy(model(inputs), labels, reduction="sum"), len(labels)


def plain_mean(model: nn.Module, batch: Batch) -> Tensor:
    inputs, labels = batch
    return F.cross_entropy(model(inputs), labels)


@pytest.mark.parametrize("loss", [users_loss, plain_mean, CLASSIFICATION.loss])
def test_a_criterion_must_agree_with_the_loss(loss: Callable[[nn.Module, Batch], Tensor]) -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(784), nn.Dropout(), nn.Linear(784, 10))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = torch.rand(2, *MNIST), torch.tensor([3, 7])
    check_criterion(model, batch, Task(loss, criterion=F.cross_entropy))
    check_criterion(model, batch, Task(loss))
    with pytest.raises(
        ValueError, match=r"^task\.name: loss and criterion must agree, got means (\S+) and (\S+) for 2 "
    ):
        check_criterion(model, batch, Task(loss, criterion=twice))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(part.training for part in model.modules())


def test_classes_on_the_last_axis_are_told_where_they_go() -> None:
    """Scores [b, T, classes], as language models give them."""
    model = nn.Embedding(7, 5)
    blank = torch.zeros(1, 4, dtype=torch.int64)
    with pytest.raises(
        ValueError, match=r"scores of shape \(2, 5, 4\) .*, got \(2, 4, 5\); move the classes to axis 1"
    ):
        check_fit(model, blank, 5, TASKS["next_token"])


def test_a_loss_that_fails_is_told_with_its_place() -> None:
    def broken(model: nn.Module, batch: Batch) -> Tensor:
        raise KeyError("labels")

    batch = torch.rand(2, *MNIST), torch.tensor([3, 7])
    with pytest.raises(
        ValueError, match=r"^task\.name: its loss fails on 2 examples: KeyError: 'labels' \(.*test_trial\.py"
    ):
        check_criterion(linear(MNIST, 10), batch, Task(broken, criterion=F.cross_entropy))


def test_a_trial_leaves_the_model_and_the_generator_alone() -> None:
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(36, 4)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    assert why_not_one(model, torch.zeros(1, 1, 6, 6), 4, CLASSIFICATION) is None
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(part.training for part in model.modules())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": lambda model, batch: model(batch[0])}, r"loss must return a scalar tensor or \(sum, count\), got t"),
        ({"loss": lambda model, batch: 0.5}, r"loss must return a scalar tensor or \(sum, count\), got 0\.5;"),
        ({"loss": lambda model, batch: dict[str, Tensor]()["x"]}, r"loss fails: KeyError: .x. "),
        ({"metrics": lambda model, batch: 3}, r"metrics must return a tensor or \(sum, count\) for each name, got 3;"),
        ({"metrics": lambda model, batch: {"a": 3}}, r"metrics must return a tensor or \(sum, count\) for each name"),
        ({"metrics": lambda model, batch: {"a": torch.ones(2)}}, r"finish fails: task\.name: metric a must be one"),
        ({"loss": lambda model, batch: (model(batch[0]).sum(), "4")}, r"loss must return a scalar tensor or \(s"),
        ({"loss": lambda model, batch: (model(batch[0]).sum(), -4)}, r"loss must return a scalar tensor or \(s"),
        ({"loss": lambda model, batch: (model(batch[0]).sum(), 4, 4)}, r"loss must return a scalar tensor or \(s"),
        ({"metrics": lambda model, batch: {"a": (1.0, "4")}}, r"metrics must return a tensor or \(sum, count\) for ea"),
        ({"metrics": lambda model, batch: {5: (1.0, 4)}}, r"metrics must have names that .*, got 5; rename it"),
        ({"metrics": lambda model, batch: {"examples": (1.0, 4)}}, r"metrics must have names that .*, got 'examples'"),
        ({"torchmetrics": {"name": MulticlassRecall(10)}}, r"metrics must have names that .*, got 'name'; rename it"),
        ({"finish": lambda totals: None}, r"finish must return a number for each name, got None; return a dict"),
        ({"best": ("f1", "max")}, r"best must be one of its metrics, got f1; choose from loss, accuracy"),
    ],
)  # fmt: skip
def test_a_task_that_gives_something_else_is_told(changes: Any, message: str) -> None:
    batch = torch.randn(2, *MNIST), torch.tensor([1, 2])
    check_task(linear(MNIST, 10), batch, CLASSIFICATION)
    with pytest.raises(ValueError, match=rf"^task\.name: {message}"):
        check_task(linear(MNIST, 10), batch, CLASSIFICATION._replace(**changes))


def test_a_task_s_own_torchmetric_may_be_the_best() -> None:
    batch = torch.randn(2, *MNIST), torch.tensor([1, 2])
    check_task(
        linear(MNIST, 10),
        batch,
        Task(TASKS["classification"].loss, torchmetrics={"recall": MulticlassRecall(10)}, best=("recall", "max")),
    )


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda model, batch: 1.0, r"task\.name: loss must return a scalar tensor or \(sum, count\), got 1\.0"),
        (lambda model, batch: model(batch[0]).sum() / dict[str, int]()["x"], r"task\.name: loss fails: KeyError: .x. "),
        (lambda model, batch: model(batch[0], 5), r"model\.name: tests\.helpers\.models:linear does not take a b"),
    ],
)  # fmt: skip
def test_a_loss_that_fails_is_not_the_model_s_fault(loss: Any, message: str) -> None:
    def blank(examples: int) -> Batch:
        return torch.randn(examples, *MNIST), torch.zeros(examples, dtype=torch.int64)

    with pytest.raises(ValueError, match=f"^{message}"):
        build("tests.helpers.models:linear", "keep", MNIST, 10, seed=0, task=Task(loss), blank=blank)


class Pair(Metric):
    """Takes anything, and gives a dict."""

    def update(self, outputs: Tensor, labels: Tensor) -> None:
        pass

    def compute(self) -> Any:
        return {"a": torch.tensor(1.0), "b": torch.tensor(2.0)}


@pytest.mark.parametrize(
    ("name", "metric", "message"),
    [
        (
            "recall",
            MulticlassRecall(10, average="none"),
            r"recall must be one number, got a tensor of shape \[10\]; tak",
        ),
        ("pair", Pair(), r"pair must be one number, got dict; choose one of its values"),
        ("recall", MulticlassRecall(3), r"recall fails: .*number of classes"),
        ("accuracy", MulticlassRecall(10), r"accuracy is measured by the task itself; give"),
    ],
)
def test_a_torchmetric_that_cannot_be_logged_is_told_before_a_run(name: str, metric: Metric, message: str) -> None:
    batch = torch.randn(2, *MNIST), torch.tensor([1, 2])
    model = linear(MNIST, 10)
    check_torchmetrics(model, batch, CLASSIFICATION._replace(torchmetrics={"recall": MulticlassRecall(10)}))
    with pytest.raises(ValueError, match=rf"^task\.metrics: {message}"):
        check_torchmetrics(model, batch, CLASSIFICATION._replace(torchmetrics={name: metric}))


def recalls(classes: int) -> Metric:
    return MulticlassRecall(classes, average="none")


def test_a_run_is_refused_before_its_first_round_for_a_metric_of_each_class(tmp_path: Path) -> None:
    config = tiny(tmp_path, task=TaskConfig(metrics=("tests.test_trial:recalls",)))
    with pytest.raises(ValueError, match=r"^task\.metrics: recalls must be one number, got a tensor of shape \[3\]"):
        load_parts(config)
