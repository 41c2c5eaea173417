"""Sweeps: every combination once, the tuned value by validation alone, finished runs left as they are."""

from __future__ import annotations

import csv
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from flare_dist.run import sweep as module
from flare_dist.run.config import Config, load_config
from flare_dist.run.sweep import Grid, Run, combinations, parse_values, results_table, sweep

TABLE = {  # (lr, seed) -> (validation accuracy, test accuracy); the test set would choose otherwise
    ("0.1", 0): (0.5, 0.9),
    ("0.2", 0): (0.7, 0.6),
    ("0.3", 0): (0.6, 0.8),
    ("0.2", 1): (0.6, 0.5),
}


class Trainer:
    """Stands for the training process: reads its command line and leaves a summary, or an error."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []

    def run(self, command: list[str], stdout: Any, **options: Any) -> Any:
        self.commands.append(command)
        settings = dict(itertools.pairwise(command))
        lr, seed = settings["--clients.lr"], int(settings["--seed"])
        status = 0
        if lr == "9":
            stdout.write("error: round 3: the losses or deltas of all clients (0) are not finite\n")
            status = 1
        elif lr == "8":
            stdout.write("loading\nerror: data.root: no such folder\n")
            status = 2
        else:
            validation, test = TABLE[lr, seed]
            summary = {"test_accuracy": test, "test_loss": 1.0, "uplink_bytes": 10**6, "downlink_bytes": 1}
            directory = Path(settings["--output_dir"])
            directory.mkdir(parents=True)
            (directory / "summary.json").write_text(
                json.dumps(summary | {"validation_accuracy": validation, "seconds": 1.0})
            )
        return type("Completed", (), {"returncode": status})


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Trainer:
    used = Trainer()
    monkeypatch.setattr(module.subprocess, "run", used.run)
    return used


def nothing(arguments: object) -> None:
    """Every command line is valid."""


def play(directory: Path, grid: Grid, **options: Any) -> list[dict[str, Any]]:
    return sweep(Config(output_dir=str(directory)), grid, options.get("ranks", 1), options.get("check", nothing))


def test_combinations_are_all_and_in_order() -> None:
    assert combinations({}) == [{}]
    assert combinations({"a": ["1", "2"], "b": ["x", "y"]}) == [
        {"a": "1", "b": "x"},
        {"a": "1", "b": "y"},
        {"a": "2", "b": "x"},
        {"a": "2", "b": "y"},
    ]


def test_values_are_read_as_written() -> None:
    texts = ["clients.lr=0.1,1e-2", "clients.objective=none,flare", "compression.warmup=[0.1, 0.2],[]", "x=null,true"]
    assert parse_values("--grid", texts) == {
        "clients.lr": ["0.1", "1e-2"],
        "clients.objective": ["none", "flare"],
        "compression.warmup": ["[0.1, 0.2]", "[]"],
        "x": ["null", "true"],
    }


@pytest.mark.parametrize("texts", [["lr"], ["lr="], ["=1"], ["lr=1", "lr=2"], ["lr=[1"]])
def test_values_that_make_no_sense_are_refused(texts: list[str]) -> None:
    with pytest.raises(ValueError, match=r"^--grid: expected each KEY=VALUE"):
        parse_values("--grid", texts)


@pytest.mark.parametrize(
    ("grid", "tune", "seeds", "message"),
    [
        ({"seed": ["1"]}, {}, [0], "--grid: use --seeds for seed"),
        ({}, {"output_dir": ["x"]}, [0], "--grid: use --output_dir for output_dir"),
        ({"a": ["1"]}, {"a": ["2"]}, [0], "--tune: a cannot be in --grid as well"),
        ({}, {}, [], "--seeds: needs different whole numbers"),
        ({}, {}, [1, 1], "--seeds: needs different whole numbers"),
    ],
)
def test_grids_that_make_no_sense_are_refused(grid: Any, tune: Any, seeds: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        Grid(grid, tune, seeds)


def test_every_combination_is_trained_once_with_every_seed(tmp_path: Path, trainer: Trainer) -> None:
    rows = play(tmp_path, Grid({"clients.lr": ["0.2", "9"]}, {}, [0, 1]))
    assert [(row["clients.lr"], row["seed"], row["status"]) for row in rows] == [
        ("0.2", 0, "finished"),
        ("0.2", 1, "finished"),
        ("9", 0, "diverged"),
        ("9", 1, "diverged"),
    ]
    assert load_config(tmp_path / "base.yaml") == Config(output_dir=str(tmp_path))
    with (tmp_path / "results.csv").open() as file:
        written = list(csv.DictReader(file))
    assert [row["test_accuracy"] for row in written] == ["0.6", "0.5", "", ""]
    assert not any("data.validation" in argument for command in trainer.commands for argument in command)


def test_finished_runs_are_not_repeated(tmp_path: Path, trainer: Trainer) -> None:
    grid = Grid({"clients.lr": ["0.1", "0.2"]}, {}, [0])
    first = play(tmp_path, grid)
    (Run({"clients.lr": "0.1"}, 0, False).directory(tmp_path) / "summary.json").unlink()
    Run({"clients.lr": "0.1"}, 0, False).directory(tmp_path).rmdir()
    assert play(tmp_path, grid) == first
    assert len(trainer.commands) == 3


def test_tuning_looks_at_validation_data_only_and_with_the_first_seed(
    tmp_path: Path, trainer: Trainer, caplog: pytest.LogCaptureFixture
) -> None:
    rows = play(tmp_path, Grid({}, {"clients.lr": ["0.1", "0.2", "0.3", "9"]}, [0, 1]))
    assert [(row["purpose"], row["clients.lr"], row["seed"]) for row in rows] == [
        *(("tuning", lr, 0) for lr in ("0.1", "0.2", "0.3", "9")),
        ("result", "0.2", 0),
        ("result", "0.2", 1),
    ]
    held_out = [dict(itertools.pairwise(command)).get("--data.validation") for command in trainer.commands]
    assert held_out == ["0.1"] * 4 + [None] * 2
    assert not caplog.messages or "edge" not in " ".join(caplog.messages)


def test_the_edge_of_a_search_is_pointed_out(
    tmp_path: Path, trainer: Trainer, caplog: pytest.LogCaptureFixture
) -> None:
    play(tmp_path, Grid({}, {"clients.lr": ["0.2", "0.1", "0.3"]}, [0]))
    assert "clients.lr = 0.2 is at the edge" in " ".join(caplog.messages)


def test_a_setting_that_always_diverges_has_no_result(tmp_path: Path, trainer: Trainer) -> None:
    rows = play(tmp_path, Grid({}, {"clients.lr": ["9"]}, [0]))
    assert [row["purpose"] for row in rows] == ["tuning"]


def test_a_run_that_cannot_start_ends_the_sweep_with_its_error(tmp_path: Path, trainer: Trainer) -> None:
    with pytest.raises(ValueError, match=r"status 2: error: data\.root: no such folder"):
        play(tmp_path, Grid({"clients.lr": ["8", "0.1"]}, {}, [0]))
    assert len(trainer.commands) == 1


def test_nothing_starts_where_a_setting_is_wrong(tmp_path: Path, trainer: Trainer) -> None:
    def check(arguments: object) -> None:
        raise ValueError(f"bad: {arguments}")

    with pytest.raises(ValueError, match=r"bad: \['--clients.lr', '0.1'\]"):
        play(tmp_path / "new", Grid({"clients.lr": ["0.1"]}, {}, [0]), check=check)
    assert not trainer.commands
    assert not (tmp_path / "new").exists()


def test_another_configuration_is_not_mixed_in(tmp_path: Path, trainer: Trainer) -> None:
    grid = Grid({"clients.lr": ["0.1"]}, {}, [0])
    play(tmp_path, grid)
    with pytest.raises(ValueError, match="holds a sweep of another configuration"):
        sweep(Config(rounds=7, output_dir=str(tmp_path)), grid, 1, nothing)


def test_ranks_are_started_by_torchrun(tmp_path: Path, trainer: Trainer) -> None:
    play(tmp_path, Grid({"clients.lr": ["0.1"]}, {}, [0]), ranks=3)
    assert trainer.commands[0][1:7] == ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "3", "-m"]


def test_the_table_gives_mean_and_spread_and_marks_the_best(tmp_path: Path, trainer: Trainer) -> None:
    rows = play(tmp_path, Grid({"clients.lr": ["0.2", "9"]}, {}, [0, 1]))
    rows += play(tmp_path / "other", Grid({"clients.lr": ["0.1"]}, {}, [0]))
    table = results_table(rows, ["clients.lr"])
    columns = [list(column.cells) for column in table.columns]
    assert columns[0] == ["clients.lr=0.2 *", "clients.lr=9", "clients.lr=0.1"]
    assert columns[2] == ["0.6500 ± 0.0707", "-", "0.5000"]
    assert columns[3] == ["0.5500 ± 0.0707", "-", "0.9000"]
