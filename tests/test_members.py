"""Who does badly: groups of the test set, and clients on what they hold out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flare_dist.cli import main
from flare_dist.data.examples import Examples
from flare_dist.run.evaluation import evaluate_run
from flare_dist.run.members import group_members
from flare_dist.tasks.evaluation_config import EvaluationConfig
from tests.helpers.runs import start, tiny


def rows_of(directory: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_groups_are_found_by_name() -> None:
    examples = Examples(
        torch.zeros(5, 1, 2, 2), torch.zeros(5), torch.tensor([2, 0, 2, 2, 0]), group_names=("a", "b", "c")
    )
    found = group_members(examples)
    assert {name: indices.tolist() for name, indices in found.items()} == {"a": [1, 4], "c": [0, 2, 3]}


def test_the_examples_of_groups_and_clients_add_up_to_the_whole(tmp_path: Path) -> None:
    start(tiny(tmp_path, evaluation=EvaluationConfig(by_group=True, client_holdout=0.25)))
    evaluated = [row for row in rows_of(tmp_path) if "test_accuracy" in row]
    assert len(evaluated) == 4
    for row in evaluated:
        groups = row["groups"]
        assert isinstance(groups, dict)
        total = sum(found["examples"] for found in groups.values())
        mean = sum(found["examples"] * found["accuracy"] for found in groups.values()) / total
        assert total == 30
        assert mean == pytest.approx(row["test_accuracy"])
        worst = min(groups.values(), key=lambda found: found["accuracy"])
        assert row["worst_group_accuracy"] == worst["accuracy"] == groups[row["worst_group_name"]]["accuracy"]
        assert row["worst_client_accuracy"] <= row["client_accuracy"] <= row["best_client_accuracy"]  # type: ignore[operator]
    shown = EventAccumulator(str(tmp_path)).Reload()
    for name in ("0", "1"):
        curve = [event.value for event in shown.Scalars(f"accuracy_by_group/{name}")]
        assert curve == pytest.approx([row["groups"][name]["accuracy"] for row in evaluated])  # type: ignore[index]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["worst_group_accuracy"] == evaluated[-1]["worst_group_accuracy"]


def test_measuring_groups_changes_no_weight(tmp_path: Path) -> None:
    start(tiny(tmp_path / "plain"))
    start(tiny(tmp_path / "grouped", evaluation=EvaluationConfig(by_group=True)))
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "grouped")]
    assert models[0] == models[1]
    assert evaluate_run(tmp_path / "plain", "final", None) == evaluate_run(tmp_path / "grouped", "final", None)


def test_clients_do_not_train_on_what_they_hold_out(tmp_path: Path) -> None:
    start(tiny(tmp_path / "plain"))
    start(tiny(tmp_path / "held", evaluation=EvaluationConfig(client_holdout=0.5)))
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "held")]
    assert models[0] != models[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.name=digits", "--evaluation.by_group=true"], "evaluation.by_group: the test set has no groups"),
        (["--mode=gradient", "--evaluation.client_holdout=0.1"], "evaluation.client_holdout: only federated training"),
        (
            ["--evaluation.client_holdout=1"],
            "evaluation.client_holdout: out of range, got 1.0; choose a number in [0, 1)",
        ),
        (["--evaluation.personalised=true"], "evaluation.personalised: needs what clients hold out"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *arguments, f"--output_dir={tmp_path}"])
    assert message in capsys.readouterr().err
