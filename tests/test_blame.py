"""An error of the user's own code in a round names the key, the round, the rank and the line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flare_dist
from flare_dist.clients.config import ClientsConfig
from flare_dist.config.config import Config
from flare_dist.errors import ReportedError
from flare_dist.models.config import ModelConfig
from flare_dist.run.blame import blamed
from flare_dist.tasks.config import TaskConfig
from tests.scripts.from_python import net, source

HERE = "tests.test_blame"


class Broken(nn.Module):
    def __init__(self, shape: Any = None, classes: Any = None) -> None:
        super().__init__()

    def forward(self, inputs: Tensor) -> Tensor:
        raise RuntimeError("gives up")


def task() -> flare_dist.Task:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        return model(batch).sum() / dict[str, float]()["scale"]

    return flare_dist.Task(loss)


def optimizer(named_parameters: Any, lr: float) -> Any:
    return helper()


def helper() -> None:
    raise KeyError("state")


CONFIG = Config(
    model=ModelConfig(name=f"{HERE}:Broken"),
    task=TaskConfig(f"{HERE}:task"),
    clients=ClientsConfig(optimizer=f"{HERE}:optimizer"),
)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="code has no qualified name: all of the package are named")
@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: Broken()(torch.zeros(2)), f"model.name: {HERE}:Broken fails in round 3 on rank 1: gives up ("),
        (lambda: task().loss(nn.Identity(), torch.zeros(2)), f"task.name: {HERE}:task fails in round 3 on rank 1: Key"),
        (lambda: task().loss(Broken(), torch.zeros(2)), f"model.name: {HERE}:Broken fails in round 3 on rank 1: gives"),
        (
            lambda: optimizer((), 1.0),
            f"task.name: {HERE}:task or model.name: {HERE}:Broken or clients.optimizer: {HERE}:optimizer fails in",
        ),
    ],
)
def test_the_innermost_code_of_the_user_s_is_named(call: Any, said: str) -> None:
    with pytest.raises(RuntimeError) as caught, blamed(CONFIG, 3, 1):
        call()
    assert str(caught.value).startswith(said)
    assert "test_blame.py, line" in str(caught.value)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize(
    "error", [ReportedError("disk full"), ValueError("task.metrics: top2 fails"), KeyboardInterrupt()]
)
def test_others_pass_as_they_are(error: BaseException) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as caught, blamed(CONFIG, 3, 1):
        fail()
    assert caught.value is error


def test_an_error_in_which_no_code_of_the_user_s_has_a_part_passes() -> None:
    with pytest.raises(KeyError), blamed(Config(), 3, 1):
        helper()


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_loss_from_python_that_fails_in_a_round_is_named(tmp_path: Path, part: str) -> None:
    calls = []

    def loss(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        calls.append(0)
        if len(calls) > 12 and model.training == (part == "train"):
            raise ZeroDivisionError("scale")
        inputs, labels = batch
        return nn.functional.cross_entropy(model(inputs), labels, reduction="sum"), len(labels)

    config: dict[str, Any] = {"rounds": 3, "clients": {"num": 2}, "tracking": [], "output_dir": str(tmp_path / "run")}
    said = r"^task\.name: python:Task fails in round \d on rank 0: ZeroDivisionError: scale \(.*test_blame\.py, line"
    with pytest.raises(RuntimeError, match=said):
        flare_dist.train(config, data=source(), model=net(), task=flare_dist.Task(loss))
