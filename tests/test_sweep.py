"""A sweep trains every combination once, and starts nothing if one of them is wrong."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from flare_dist.config.config import CheckpointConfig, Config
from flare_dist.config.load import load_config
from flare_dist.records import rundir
from flare_dist.studies.grid import Grid
from flare_dist.studies.sweep import sweep
from tests.helpers.sweeps import Processes, play_grid


def test_every_combination_is_trained_once_with_every_seed(tmp_path: Path, processes: Processes) -> None:
    rows = play_grid(tmp_path, Grid({"clients.lr": ["0.2", "9"]}, {}, [0, 1]))
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
    assert not any("data.validation" in argument for command in processes.commands for argument in command)


def test_a_sweep_needs_a_rank_and_a_directory_of_its_own(tmp_path: Path, processes: Processes) -> None:
    grid = Grid({"clients.lr": ["0.1"]}, {}, [0])
    with pytest.raises(ValueError, match=r"^--ranks: out of range, got 0; choose at least 1"):
        play_grid(tmp_path, grid, ranks=0)
    with rundir.claim(tmp_path), pytest.raises(ValueError, match=r"^output_dir: another run is writing to"):
        play_grid(tmp_path, grid)


def test_nothing_starts_if_a_setting_is_wrong(tmp_path: Path, processes: Processes) -> None:
    with pytest.raises(ValueError, match=r"clients\.lr: out of range, got "):
        play_grid(tmp_path / "new", Grid({"clients.lr": ["0.1", "-1"]}, {}, [0]))
    assert not processes.commands
    assert not (tmp_path / "new").exists()


def test_a_sweep_of_another_configuration_is_refused(tmp_path: Path, processes: Processes) -> None:
    grid = Grid({"clients.lr": ["0.1"]}, {}, [0])
    play_grid(tmp_path, grid)
    with pytest.raises(ValueError, match=r"holds a sweep of another configuration \(different: "):
        sweep(Config(rounds=7, output_dir=str(tmp_path)), grid, 1)
    free = Config(log_every=5, checkpoint=CheckpointConfig(every=2), output_dir=str(tmp_path))
    assert len(sweep(free, grid, 1)) == 1  # what may change when a run continues may change here
