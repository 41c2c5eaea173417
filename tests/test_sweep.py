"""Sweeps: every combination once, the tuned value by validation alone, finished runs left as they are."""

from __future__ import annotations

import csv
import itertools
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flare_dist.config.config import Config
from flare_dist.config.load import load_config
from flare_dist.data.config import DataConfig
from flare_dist.records import rundir
from flare_dist.studies import sweep as module
from flare_dist.studies.sweep import Grid, Run, combinations, parse_values, sweep
from flare_dist.studies.sweep_results import results_table

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

    def run(self, command: list[str], output: Path) -> int:
        self.commands.append(command)
        settings = dict(itertools.pairwise(command))
        lr, seed = settings["--clients.lr"], int(settings["--seed"])
        status = 0
        if lr == "9":
            output.write_text("error: diverged: round 3: the training loss of the pooled data is not finite\n")
            status = 1
        elif lr == "8":
            output.write_text("loading\nerror: data.root: no such folder\n")
            status = 2
        else:
            validation, test = TABLE[lr, seed]
            summary = {"test_accuracy": test, "test_loss": 1.0, "uplink_bytes": 10**6, "downlink_bytes": 1}
            directory = Path(settings["--output_dir"])
            directory.mkdir(parents=True)
            (directory / "summary.json").write_text(
                json.dumps(summary | {"validation_accuracy": validation, "seconds": 1.0})
            )
        return status


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Trainer:
    used = Trainer()
    monkeypatch.setattr(module, "_run", used.run)
    return used


def play(directory: Path, grid: Grid, **options: Any) -> list[dict[str, Any]]:
    return sweep(Config(output_dir=str(directory)), grid, options.get("ranks", 1))


def test_combinations_are_all_and_in_order() -> None:
    assert combinations({}) == [{}]
    assert combinations({"a": ["1", "2"], "b": ["x", "y"]}) == [
        {"a": "1", "b": "x"},
        {"a": "1", "b": "y"},
        {"a": "2", "b": "x"},
        {"a": "2", "b": "y"},
    ]


def test_values_are_read_as_written() -> None:
    texts = ["clients.lr=0.1,1e-2", "a=no,bf16", "compression.warmup=[0.1, 0.2],[]", "x=null,1_0,1:30,2024-01-01"]
    assert parse_values("--grid", texts) == {
        "clients.lr": ["0.1", "1e-2"],
        "a": ["no", "bf16"],
        "compression.warmup": ["[0.1, 0.2]", "[]"],
        "x": ["null", "1_0", "1:30", "2024-01-01"],
    }


@pytest.mark.parametrize("texts", [["lr"], ["lr="], ["=1"], ["lr=1", "lr=2"], ["lr=1,1"], ["lr=[1"]])
def test_values_that_make_no_sense_are_refused(texts: list[str]) -> None:
    with pytest.raises(ValueError, match=r"^--grid: expected each KEY=VALUE"):
        parse_values("--grid", texts)


def test_every_run_has_a_directory_of_its_own() -> None:
    runs = [Run({"data.root": root}, 0, False) for root in ("d/a/b", "d/a_b", "x" * 300, "x" * 301)]
    names = [run.directory(Path("sweep")).name for run in runs]
    assert len(set(names)) == 4
    assert all(run.directory(Path("sweep")).parent == Path("sweep") for run in runs)
    assert max(map(len, names)) < 250
    assert Run({"clients.lr": "1e-2"}, 3, True).directory(Path("s")) == Path("s/tuning/clients.lr=1e-2,seed=3")


@pytest.mark.parametrize(
    ("grid", "tune", "seeds", "message"),
    [
        ({"seed": ["1"]}, {}, [0], "--grid: use --seeds for seed"),
        ({}, {"output_dir": ["x"]}, [0], "--tune: use --output_dir for output_dir"),
        ({"a": ["1"]}, {"a": ["2"]}, [0], "--tune: a cannot be in --grid as well"),
        ({"data.validation": ["0"]}, {}, [0], "--grid: use --data.validation for data.validation"),
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


@pytest.mark.parametrize(
    ("tried", "edge"),
    [(["0.2", "0.1", "0.3"], False), (["0.3", "0.2"], True), (["0.1", "0.2"], True), (["0.2"], False)],
)
def test_the_edge_of_a_search_is_pointed_out(
    tmp_path: Path, trainer: Trainer, caplog: pytest.LogCaptureFixture, tried: list[str], edge: bool
) -> None:
    play(tmp_path, Grid({}, {"clients.lr": tried}, [0]))
    assert ("clients.lr = 0.2 is at the edge" in " ".join(caplog.messages)) is edge


def test_a_share_held_out_by_the_configuration_is_kept(tmp_path: Path, trainer: Trainer) -> None:
    config = Config(output_dir=str(tmp_path), data=DataConfig(validation=0.25))
    sweep(config, Grid({}, {"clients.lr": ["0.1", "0.2"]}, [0]), 1)
    assert not any("--data.validation" in command for command in trainer.commands)


def test_runs_that_diverged_are_not_repeated(tmp_path: Path, trainer: Trainer) -> None:
    grid = Grid({"clients.lr": ["9"]}, {}, [0])
    assert play(tmp_path, grid) == play(tmp_path, grid)
    assert len(trainer.commands) == 1


def test_a_sweep_needs_a_rank_and_a_directory_of_its_own(tmp_path: Path, trainer: Trainer) -> None:
    grid = Grid({"clients.lr": ["0.1"]}, {}, [0])
    with pytest.raises(ValueError, match=r"^--ranks: must be at least 1, got 0"):
        play(tmp_path, grid, ranks=0)
    with rundir.claim(tmp_path), pytest.raises(ValueError, match=r"^output_dir: another run is writing to"):
        play(tmp_path, grid)


def test_a_setting_that_always_diverges_has_no_result(tmp_path: Path, trainer: Trainer) -> None:
    rows = play(tmp_path, Grid({}, {"clients.lr": ["9"]}, [0]))
    assert [row["purpose"] for row in rows] == ["tuning"]


def test_a_run_that_cannot_start_ends_the_sweep_with_its_error(tmp_path: Path, trainer: Trainer) -> None:
    with pytest.raises(ValueError, match=r"status 2: error: data\.root: no such folder"):
        play(tmp_path, Grid({"clients.lr": ["8", "0.1"]}, {}, [0]))
    assert len(trainer.commands) == 1


def test_nothing_starts_where_a_setting_is_wrong(tmp_path: Path, trainer: Trainer) -> None:
    with pytest.raises(ValueError, match=r"clients\.lr: must be positive"):
        play(tmp_path / "new", Grid({"clients.lr": ["0.1", "-1"]}, {}, [0]))
    assert not trainer.commands
    assert not (tmp_path / "new").exists()


def test_another_configuration_is_not_mixed_in(tmp_path: Path, trainer: Trainer) -> None:
    grid = Grid({"clients.lr": ["0.1"]}, {}, [0])
    play(tmp_path, grid)
    with pytest.raises(ValueError, match=r"holds a sweep of another configuration \(different: "):
        sweep(Config(rounds=7, output_dir=str(tmp_path)), grid, 1)


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


def test_a_run_ends_with_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(subprocess.Popen):
        def wait(self, timeout: float | None = None) -> int:
            if self.poll() is None and not hasattr(self, "interrupted"):
                self.interrupted = True
                started.append(self)
                raise KeyboardInterrupt
            return super().wait(timeout)

    started: list[Interrupted] = []
    monkeypatch.setattr(module.subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        module._run([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "log")
    assert started[0].poll() == -signal.SIGTERM
