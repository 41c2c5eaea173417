"""The saved models of a run score what the run measured."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from flare_dist.run.evaluation import evaluate_run
from tests.helpers.runs import start, tiny


def test_evaluate_reports_what_the_run_measured(straight: Path) -> None:
    summary = json.loads((straight / "summary.json").read_text())
    assert evaluate_run(straight, "final", None) == {name: summary[f"test_{name}"] for name in ("accuracy", "loss")}
    assert evaluate_run(straight, "best", None)["accuracy"] == summary["best_accuracy"]


def test_best_model_is_saved_from_the_first_evaluation_on(tmp_path: Path) -> None:
    """With a learning rate this small nothing beats the initial model."""
    config = tiny(tmp_path, clients=dataclasses.replace(tiny(tmp_path).clients, lr=1e-12))
    start(config)
    assert json.loads((tmp_path / "summary.json").read_text())["best_round"] == 0
    assert evaluate_run(tmp_path, "best", None) == evaluate_run(tmp_path, "final", None)
