"""Clients are trained as one batch if settings and model allow it; a run keeps what was chosen."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from flare_dist.clients.config import ClientsConfig
from flare_dist.config.config import Config
from flare_dist.engines.config import EngineConfig
from flare_dist.models.config import ModelConfig
from flare_dist.rounds.one_batch import resolve_together, why_not_one_batch
from flare_dist.sparse_training.config import SparseTrainingConfig
from flare_dist.tasks.builtin import CLASSIFICATION
from tests.helpers.runs import results, start, tiny

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"mode": "gradient"}, "only federated training has several clients"),
        ({"engine": EngineConfig("deepspeed")}, "this engine trains one client at a time"),
        ({"engine": EngineConfig(mixed_precision="bf16")}, "mixed precision is for one client at a time"),
        ({"engine": EngineConfig(gradient_accumulation_steps=2)}, "gradients are accumulated for one client at a time"),
        ({"clients": ClientsConfig(objective="fedprox")}, "an objective is for one client at a time"),
        ({"clients": ClientsConfig(step_ahead=0.5)}, "step_ahead starts each client from another model"),
        ({"sparse_training": SparseTrainingConfig("pdst", 0.5)}, "masks are for one client at a time"),
    ],
)
def test_settings_that_forbid_one_batch_are_found_with_the_reason(
    changes: dict[str, Any], reason: str | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("flare_dist"), "propagate", True)
    caplog.set_level("INFO")
    config, model, blank = replace(Config(), **changes), nn.Linear(4, 4), torch.zeros(1, 4)
    found = why_not_one_batch(config, model, blank, CLASSIFICATION)
    assert found == reason or (reason is not None and found is not None and found.startswith(reason))
    settled = resolve_together(config, model, blank, "cuda", CLASSIFICATION)
    assert settled.clients.together == ("never" if reason else "always")
    if config.mode == "federated":
        assert (f"one after another: {reason}" if reason else "as one batch") in caplog.text
    if reason:
        with pytest.raises(ValueError, match=rf"^clients\.together: {reason}, got always with "):
            replace(config, clients=replace(config.clients, together="always"))


def test_auto_is_for_small_models_on_gpus() -> None:
    def settled(together: str, model: nn.Module, device: str) -> str:
        config = replace(Config(), clients=ClientsConfig(together=together))
        return resolve_together(config, model, torch.zeros(1, 1024), device, CLASSIFICATION).clients.together

    small, large = nn.Linear(1024, 8), nn.Linear(1024, 1025)
    assert settled("auto", small, "cuda") == "always"
    assert settled("auto", large, "cuda") == settled("auto", small, "cpu") == settled("never", small, "cuda") == "never"
    assert settled("always", small, "cpu") == settled("always", large, "cuda") == "always"
    with pytest.raises(
        ValueError, match=r"^clients\.together: unknown choice, got 'yes'; choose from auto, always, never"
    ):
        ClientsConfig(together="yes")


def together(config: Config, value: str) -> Config:
    return replace(config, clients=replace(config.clients, together=value, local_epochs=2, momentum=0.9))


def test_a_run_says_how_it_was_trained_and_is_the_same(tmp_path: Path) -> None:
    rows = {}
    for value, recorded in [("auto", "never"), ("never", "never"), ("always", "always")]:
        start(together(tiny(tmp_path / value), value))
        settled = yaml.safe_load((tmp_path / value / "config.yaml").read_text())
        assert settled["clients"]["together"] == recorded
        rows[value] = results(tmp_path / value)[1]
    assert rows["auto"] == rows["never"]
    for one, other in zip(rows["never"], rows["always"]):
        assert one.keys() == other.keys()
        for key, value in one.items():
            near = key.endswith(("loss", "accuracy"))
            assert other[key] == (pytest.approx(value, rel=1e-3, abs=1e-3) if near else value), key


@pytest.mark.parametrize("value", ["auto", "always"])
def test_a_killed_run_goes_on_as_it_began(tmp_path: Path, value: str) -> None:
    start(together(tiny(tmp_path / "straight"), value))
    start(together(tiny(tmp_path / "killed"), value), kill_in_round=5)
    start(together(tiny(tmp_path / "killed"), value))
    assert results(tmp_path / "killed")[1] == results(tmp_path / "straight")[1]
    path = tmp_path / "killed" / "config.yaml"
    if value == "auto":  # a run of a version that knew only one after another
        path.write_text(path.read_text().replace("  together: never\n", ""))
        start(together(tiny(tmp_path / "killed"), value))
        start(together(tiny(tmp_path / "killed"), "never"))
    with pytest.raises(ValueError, match=r"^clients\.together: .* holds a run with another configuration"):
        start(together(tiny(tmp_path / "killed"), "always" if value == "auto" else "never"))


def test_a_model_that_cannot_be_batched_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    config = tiny(tmp_path / "run", model=ModelConfig("tests.helpers.rounds:norm_net", norm="batch"))
    with pytest.raises(ValueError, match=r"^clients\.together: always is not possible: the model has BatchNorm, .*$"):
        start(together(config, "always"))
    assert not (tmp_path / "run").exists()
    start(together(config, "auto"))
