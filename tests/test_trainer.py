"""Whole runs: resuming is bitwise, and every kind of state survives."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from flare_dist.compression.config import CompressionConfig
from flare_dist.config.load import load_config
from flare_dist.models.config import ModelConfig
from flare_dist.run import trainer
from flare_dist.run.evaluation import evaluate_run
from flare_dist.server.config import ServerConfig
from tests.helpers.runs import assert_same_run, results, start, tiny


def test_the_run_directory_of_a_finished_run_is_complete(straight: Path) -> None:
    names = {path.name.split(".out.")[0] for path in straight.iterdir()}
    models = {"model.safetensors", "best.safetensors"}
    texts = {"config.yaml", "preprocessing.json", "metrics.jsonl", "clients.jsonl", "summary.json"}
    assert names == models | texts | {".lock", "events", "checkpoints"}
    assert load_config(straight / "config.yaml").engine.threads == 1
    assert sorted(path.name for path in (straight / "checkpoints").iterdir()) == ["round-00000004", "round-00000006"]
    _, rows = results(straight)
    assert [row["round"] for row in rows] == list(range(7))
    assert [row["round"] for row in rows if "test_accuracy" in row] == [0, 2, 4, 6]
    summary = json.loads((straight / "summary.json").read_text())
    assert summary["uplink_bytes"] == sum(row.get("uplink_bytes", 0) for row in rows)
    assert summary["test_accuracy"] == rows[-1]["test_accuracy"]
    best = max((row for row in rows if "test_accuracy" in row), key=lambda row: row["validation_accuracy"])
    assert (summary["best_round"], summary["best_accuracy"]) == (best["round"], best["test_accuracy"])


@pytest.mark.parametrize("kill_in_round", [1, 3, 4, 6, 7])
def test_a_run_killed_and_continued_equals_a_straight_one(straight: Path, tmp_path: Path, kill_in_round: int) -> None:
    start(tiny(tmp_path), kill_in_round=kill_in_round)
    start(tiny(tmp_path))
    assert_same_run(straight, tmp_path)


@pytest.mark.parametrize("sizes", [(2, 2), (2, 1), (1, 3), (3, 2)])
def test_a_run_is_continued_on_any_number_of_ranks(straight: Path, tmp_path: Path, sizes: tuple[int, int]) -> None:
    first, second = sizes
    start(tiny(tmp_path), first, kill_in_round=5)
    start(tiny(tmp_path), second)
    assert_same_run(straight, tmp_path, wire=False)


@pytest.mark.parametrize("mode", ["centralised", "batchnorm", "adam_server", "dense", "flare", "ef21", "dgc"])
def test_every_kind_of_state_survives(tmp_path: Path, mode: str) -> None:
    changes: dict[str, dict[str, Any]] = {
        "centralised": {
            "mode": "centralised",
            "clients": dataclasses.replace(tiny(tmp_path).clients, momentum=0.9),
        },
        "batchnorm": {"model": ModelConfig(name="tests.helpers.rounds:norm_net", norm="batch")},
        "adam_server": {"server": ServerConfig(optimizer="adam", lr=0.01)},
        "dense": {"compression": CompressionConfig(sparsifier="dense")},
        "flare": {"clients": dataclasses.replace(tiny(tmp_path).clients, objective="flare")},
        "ef21": {"compression": CompressionConfig(density=0.02, error_feedback="ef21")},
        "dgc": {"compression": CompressionConfig(density=0.02, error_feedback="dgc", warmup=(0.5, 0.1) * 2)},
    }
    start(tiny(tmp_path / "straight", **changes[mode]))
    start(tiny(tmp_path / "killed", **changes[mode]), kill_in_round=5)
    start(tiny(tmp_path / "killed", **changes[mode]))
    assert_same_run(tmp_path / "straight", tmp_path / "killed")


def test_a_run_flushes_denormal_floats(tmp_path: Path) -> None:
    tiny_float = torch.tensor([1e-40])
    assert float(tiny_float * 1.0) > 0
    start(tiny(tmp_path / "run", rounds=1))
    assert float(tiny_float * 1.0) == 0


def test_a_finished_run_says_so_and_changes_nothing(straight: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = (straight / "metrics.jsonl").read_text()
    with caplog.at_level("INFO", logger="flare_dist"):
        trainer.log.parent.propagate = True  # type: ignore[union-attr]
        start(tiny(straight))
    assert "is finished" in caplog.text
    assert (straight / "metrics.jsonl").read_text() == before


def test_buffers_that_a_model_replaces_or_never_touches_are_saved(tmp_path: Path) -> None:
    """A running mean that is assigned anew, a counter, a constant, and a mask of minus infinity."""
    config = tiny(tmp_path / "one", model=ModelConfig(name="tests.test_trainer:OwnBuffers", norm="batch"))
    start(config)
    start(dataclasses.replace(config, output_dir=str(tmp_path / "two")), 2)
    assert_same_run(tmp_path / "one", tmp_path / "two", wire=False)
    model = load_file(tmp_path / "two" / "model.safetensors")
    fresh = OwnBuffers((1, 5, 5), 3)
    assert model["running"].any()
    assert torch.equal(model["constant"], fresh.constant)
    assert torch.equal(model["mask"], fresh.mask)


class OwnBuffers(torch.nn.Module):
    """A linear model with buffers of every kind."""

    running: torch.Tensor
    count: torch.Tensor
    constant: torch.Tensor
    mask: torch.Tensor

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        features = input_shape[0] * input_shape[1] * input_shape[2]
        self.linear = torch.nn.Linear(features, num_classes)
        self.register_buffer("running", torch.zeros(features))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("constant", torch.arange(features) / 7)
        self.register_buffer("mask", torch.full((3,), -torch.inf))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        flat = inputs.flatten(1)
        if self.training:
            self.running = 0.9 * self.running + 0.1 * flat.detach().mean(0)
            self.count = self.count + 1
        return self.linear(flat - self.running + 0 * self.constant)


class OfEveryDtype(torch.nn.Module):
    """A linear model with buffers of many dtypes, some of which its operations ask for."""

    third: torch.Tensor
    count: torch.Tensor
    mean: torch.Tensor
    halved: torch.Tensor
    least: torch.Tensor

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        features = input_shape[0] * input_shape[1] * input_shape[2]
        self.linear = torch.nn.Linear(features, num_classes)
        self.register_buffer("third", torch.full((features, features), 1 / 3, dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(features, dtype=torch.float64))
        self.register_buffer("halved", torch.ones(features, dtype=torch.float16))
        self.register_buffer("least", torch.full((features,), torch.inf))
        self.register_buffer("huge", torch.tensor(1e300, dtype=torch.float64))
        self.register_buffer("brief", torch.ones(2, dtype=torch.bfloat16) / 3)
        self.register_buffer("tiny", torch.ones(2).to(torch.float8_e4m3fn))
        self.register_buffer("wave", torch.ones(2, dtype=torch.complex64) / 3)
        self.register_buffer("keep", torch.ones(2, dtype=torch.bool))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("turned", torch.arange(6).view(2, 3).t())
        self.register_buffer("repeated", torch.arange(3).expand(2, 3))
        self.register_buffer("waves", torch.ones(2, dtype=torch.complex128), persistent=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        flat = inputs.flatten(1)
        if self.training:
            self.count += 1
            self.mean.mul_(0.9).add_(flat.detach().double().mean(0), alpha=0.1)
            self.halved = 0.9 * self.halved + 0.1 * flat.detach().half().mean(0)
            self.least.copy_(torch.minimum(self.least, flat.detach().amin(0)))
        moved = flat.double() @ self.third - self.mean
        return self.linear(moved.float() + self.halved + self.least.clamp(max=0))


@pytest.mark.parametrize("mode", ["federated", "gradient"])
def test_the_saved_model_has_the_user_s_dtypes(tmp_path: Path, mode: str) -> None:
    """Float64 constants keep all their digits, and what is minus or plus infinity begins anew with each client."""
    config = tiny(tmp_path / "one", mode=mode, model=ModelConfig(name="tests.test_trainer:OfEveryDtype", norm="batch"))
    if mode == "federated":
        start(config)
        start(dataclasses.replace(config, output_dir=str(tmp_path / "two")), 2)
        assert_same_run(tmp_path / "one", tmp_path / "two", wire=False)
    else:
        start(config, 3)
    saved, fresh = load_file(tmp_path / "one" / "model.safetensors"), OfEveryDtype((1, 5, 5), 3)
    assert {name: value.dtype for name, value in saved.items()} == {n: v.dtype for n, v in fresh.state_dict().items()}
    for name in ("third", "huge", "brief", "tiny", "wave", "keep", "turned", "repeated"):
        assert saved[name].tolist() == fresh.get_buffer(name).tolist(), name
    assert saved["mean"].any()
    assert (saved["halved"] != 1).any()
    fresh.load_state_dict(saved, assign=True)  # copying is refused by an expanded tensor
    summary = json.loads((tmp_path / "one" / "summary.json").read_text())
    assert evaluate_run(tmp_path / "one", "final", None) == {
        name: summary[f"test_{name}"] for name in ("accuracy", "loss")
    }
