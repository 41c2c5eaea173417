"""Models that cannot be trained on one example: the example joins a batch, or the run does not begin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import Tensor, nn

from flare_dist import cli
from flare_dist.rounds import build_run

SHAPE, CLASSES = (1, 6, 6), 4
KEYS = {
    "rounds": 1,
    "data.name": "synthetic",
    "data.synthetic.examples": 36,
    "data.synthetic.test_examples": 8,
    "data.synthetic.shape": "[1,6,6]",
    "data.synthetic.classes": CLASSES,
    "clients.num": 4,  # of 9 examples each
    "clients.batch_size": 4,
    "engine.threads": 1,
}
SEEN: list[int] = []


class Counting(nn.Module):
    """Notes the sizes of the batches that it is trained on."""

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training and inputs.any():  # not the blank ones of a trial
            SEEN.append(len(inputs))
        return inputs


def after_flatten(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return nn.Sequential(Counting(), nn.Flatten(), nn.BatchNorm1d(36), nn.Linear(36, num_classes))


def after_pool(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    pooled = (nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(8), nn.Flatten())
    return nn.Sequential(Counting(), nn.Conv2d(1, 8, 3), *pooled, nn.Linear(8, num_classes))


def on_maps(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """BatchNorm that works on one example."""
    return nn.Sequential(Counting(), nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(36, num_classes))


class Squeezed(nn.Sequential):
    """Somebody's own layers, which lose the dimension of a batch of one."""

    def forward(self, inputs: Tensor) -> Tensor:
        scores: Tensor = super().forward(inputs)
        return scores.squeeze()


def squeezed(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return Squeezed(Counting(), nn.Flatten(), nn.Linear(36, num_classes))


class Standardised(Squeezed):
    """Somebody's own norm, NaN for one example."""

    def forward(self, inputs: Tensor) -> Tensor:
        scores: Tensor = nn.Sequential.forward(self, inputs)
        return scores / (1 + scores.std(0)) if self.training else scores


def standardised(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return Standardised(Counting(), nn.Flatten(), nn.Linear(36, num_classes))


def synchronised(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return nn.Sequential(nn.SyncBatchNorm(1), nn.Flatten(), nn.Linear(36, num_classes))


@pytest.fixture(autouse=True)
def nothing_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the step of two examples that tells which buffers training changes."""
    SEEN.clear()
    find = build_run.constant_buffers

    def find_and_forget(*arguments: Any) -> list[str]:
        found = find(*arguments)
        SEEN.clear()
        return found

    monkeypatch.setattr(build_run, "constant_buffers", find_and_forget)


def train(directory: Path, model: str, **keys: Any) -> int:
    settings = KEYS | {"output_dir": directory, "model.name": f"tests.test_smallest_batch:{model}"} | keys
    return cli.main(["train", *(f"--{key}={value}" for key, value in settings.items())])


def settled(directory: Path) -> Any:
    return yaml.safe_load((directory / "config.yaml").read_text())["clients"]["smallest_batch"]


@pytest.mark.parametrize("model", ["after_flatten", "after_pool", "squeezed", "standardised"])
def test_a_last_example_goes_with_the_batch_before_it(model: str, tmp_path: Path) -> None:
    assert train(tmp_path, model) == 0
    assert SEEN == [4, 5] * 4
    assert settled(tmp_path) == 2


@pytest.mark.parametrize(
    ("keys", "seen"),
    [
        ({"clients.local_steps": 3}, [4, 5, 4] * 4),
        ({"clients.num": 6, "clients.batch_size": 5}, [6] * 6),
        ({"engine.gradient_accumulation_steps": 2, "clients.batch_size": 7}, [4, 3, 2] * 4),
        ({"engine.gradient_accumulation_steps": 3, "clients.batch_size": 8}, [3, 3, 3] * 4),
        ({"server.aggregator": "fednova", "clients.optimizer": "sgd"}, [4, 5] * 4),
        ({"mode": "centralised", "clients.batch_size": 7}, [7, 7, 7, 7, 8]),
        ({"mode": "gradient", "eval_every": 2, "engine.gradient_accumulation_steps": 3}, [2, 2] * 2),
        (
            {"mode": "gradient", "eval_every": 1, "engine.gradient_accumulation_steps": 3, "clients.batch_size": 7},
            [3, 4],
        ),
    ],
)
def test_every_path_joins_it(keys: dict[str, Any], seen: list[int], tmp_path: Path) -> None:
    assert train(tmp_path, "after_flatten", **keys) == 0
    assert seen == SEEN


def test_what_works_keeps_its_batches(tmp_path: Path) -> None:
    assert train(tmp_path / "maps", "on_maps") == 0
    assert SEEN == [4, 4, 1] * 4
    assert settled(tmp_path / "maps") is None
    SEEN.clear()
    assert train(tmp_path / "three", "after_flatten", **{"clients.batch_size": 3}) == 0
    assert SEEN == [3, 3, 3] * 4
    assert settled(tmp_path / "three") is None


def test_a_run_goes_on_with_what_was_settled(tmp_path: Path) -> None:
    assert train(tmp_path, "after_flatten", **{"clients.batch_size": 4}) == 0
    SEEN.clear()
    assert train(tmp_path, "after_flatten", **{"clients.batch_size": 4}) == 0  # is finished
    assert not SEEN
    assert settled(tmp_path) == 2


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {"clients.batch_size": 1},
            "clients.batch_size: must be at least 2, got 1: tests.test_smallest_batch:",
        ),
        ({"clients.batch_size": 1, "mode": "gradient"}, "clients.batch_size: must be at least 2"),
        ({"clients.batch_size": 1, "mode": "centralised"}, "clients.batch_size: must be at least 2"),
        ({"engine.gradient_accumulation_steps": 4}, "engine.gradient_accumulation_steps: must be at most 2"),
        ({"clients.smallest_batch": 1}, "clients.smallest_batch: must be at least 2, got 1"),
        (
            {"clients.smallest_batch": 5},
            "clients.smallest_batch: must be at most clients.batch_size, got 5 with clients.batch_size=4;",
        ),
        ({"clients.num": 35}, "have one example, but tests.test_smallest_batch:after_flatten cannot be trained on one"),
    ],
)
def test_what_cannot_be_joined_is_refused(
    keys: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, "after_flatten", **keys) == 2
    assert said in capsys.readouterr().err
    assert not SEEN


@pytest.mark.parametrize("mode", ["federated", "gradient"])
def test_a_norm_over_ranks_is_refused(mode: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path, "synchronised", mode=mode) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "model.name: SyncBatchNorm" in said
    assert "got tests.test_smallest_batch:synchronised with sync_batch_norm=0 and" in said
