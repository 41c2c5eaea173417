"""Who took part in a round, and how well their own models do."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flare_dist.clients.config import ClientsConfig
from flare_dist.data.config import DataConfig
from flare_dist.models.config import ModelConfig
from flare_dist.tasks.evaluation_config import EvaluationConfig
from tests.helpers.runs import start, tiny

OF_CLOCKS = ("seconds",)


def lines_of(directory: Path, name: str = "clients.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / name).read_text().splitlines()]


def without_clocks(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in OF_CLOCKS} for line in lines]


def test_each_client_of_a_round_has_a_line(straight: Path) -> None:
    lines = lines_of(straight)
    rows = {row["round"]: row for row in lines_of(straight, "metrics.jsonl")}
    assert sorted({line["round"] for line in lines}) == list(range(1, 7))
    for round_ in range(1, 7):
        own = [line for line in lines if line["round"] == round_]
        row = rows[round_]
        assert "participants" not in row
        assert len(own) == row["clients"] == 3
        assert sum(line["uplink_bytes"] for line in own) == row["uplink_bytes"]
        assert max(line["seconds"] for line in own) == pytest.approx(row["slowest_client_seconds"])
        weights = [line["examples"] for line in own]
        mean = sum(line["examples"] * line["train_loss"] for line in own) / sum(weights)
        assert mean == pytest.approx(row["train_loss"], rel=1e-5)


def test_lines_are_cut_back_on_resume_and_alike_on_two_ranks(straight: Path, tmp_path: Path) -> None:
    config = tiny(tmp_path / "resumed")
    start(config, kill_in_round=5)
    with (tmp_path / "resumed" / "clients.jsonl").open("a") as log:
        log.write('{"round": 5, "cli')
    start(config)
    assert without_clocks(lines_of(tmp_path / "resumed")) == without_clocks(lines_of(straight))
    start(tiny(tmp_path / "two"), world_size=2)
    assert without_clocks(lines_of(tmp_path / "two")) == without_clocks(lines_of(straight))


@pytest.mark.parametrize("together", ["never", "always"])
def test_clients_own_models_are_measured_wherever_they_train(tmp_path: Path, together: str) -> None:
    clients = dataclasses.replace(tiny(tmp_path).clients, together=together)
    evaluation = EvaluationConfig(client_holdout=0.3, personalised=True)
    for ranks in (1, 2):
        start(tiny(tmp_path / str(ranks), clients=clients, evaluation=evaluation), world_size=ranks)
    one, two = (lines_of(tmp_path / str(ranks)) for ranks in (1, 2))
    measured = [line["personal_accuracy"] for line in one if "personal_accuracy" in line]
    assert len(measured) == 3 * 3  # clients, rounds with an evaluation
    assert without_clocks(one) == without_clocks(two)
    row = lines_of(tmp_path / "1", "metrics.jsonl")[-1]
    own = [line["personal_accuracy"] for line in one if line["round"] == 6]
    assert row["worst_personal_accuracy"] == min(own)
    assert row["best_personal_accuracy"] == max(own)


def test_measuring_clients_own_models_changes_no_weight(tmp_path: Path) -> None:
    for personalised in (False, True):
        evaluation = EvaluationConfig(client_holdout=0.3, personalised=personalised)
        start(tiny(tmp_path / str(personalised), evaluation=evaluation))
    models = [(tmp_path / str(personalised) / "model.safetensors").read_bytes() for personalised in (False, True)]
    assert models[0] == models[1]


def test_a_client_s_own_model_fits_its_own_data_better(tmp_path: Path) -> None:
    """Clients of one class each: a few steps make a model that always answers with that class."""
    config = tiny(tmp_path, rounds=1, evaluation=EvaluationConfig(client_holdout=0.3, personalised=True))
    data = dataclasses.replace(config.data, partition="shards", shards_per_client=1)
    clients = ClientsConfig(num=3, batch_size=4, lr=0.2, local_epochs=5)
    start(dataclasses.replace(config, data=data, clients=clients))
    row = lines_of(tmp_path, "metrics.jsonl")[-1]
    assert row["personal_accuracy"] > row["client_accuracy"] + 0.2


def test_clients_that_are_groups_are_named(tmp_path: Path) -> None:
    for site in ("bern", "oslo"):
        for part, count in (("train", 4), ("test", 1)):
            for kind in ("hor", "ver"):
                folder = tmp_path / "sites" / site / part / kind
                folder.mkdir(parents=True)
                for number in range(count):
                    Image.new("L", (8, 8), 20 * number).save(folder / f"{number}.png")
    data = DataConfig(
        name="image_folder", root=str(tmp_path / "sites"), layout="sites", partition="natural", image_channels=1
    )
    clients = ClientsConfig(num=2, batch_size=2)
    evaluation = EvaluationConfig(client_holdout=0.5, personalised=True)
    config = tiny(tmp_path / "run", rounds=1, data=data, clients=clients, evaluation=evaluation)
    start(dataclasses.replace(config, model=ModelConfig(name="2nn")))
    assert [line["group"] for line in lines_of(tmp_path / "run")] == ["bern", "oslo"]
    row = lines_of(tmp_path / "run", "metrics.jsonl")[-1]
    assert row["worst_client_name"] in ("0 (bern)", "1 (oslo)")
    assert row["worst_personal_name"] in ("0 (bern)", "1 (oslo)")
