"""A run of a sweep is a process of its own, which ends with the sweep, and is not repeated."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flare_dist.config.config import Config
from flare_dist.data.config import DataConfig
from flare_dist.studies import sweep_run
from flare_dist.studies.grid import Grid, Run
from flare_dist.studies.sweep import sweep
from tests.helpers.sweeps import Processes, play_grid


def test_finished_runs_are_not_repeated(tmp_path: Path, processes: Processes) -> None:
    grid = Grid({"clients.lr": ["0.1", "0.2"]}, {}, [0])
    first = play_grid(tmp_path, grid)
    (Run({"clients.lr": "0.1"}, 0, False).directory(tmp_path) / "summary.json").unlink()
    Run({"clients.lr": "0.1"}, 0, False).directory(tmp_path).rmdir()
    assert play_grid(tmp_path, grid) == first
    assert len(processes.commands) == 3


def test_a_share_held_out_by_the_configuration_is_kept(tmp_path: Path, processes: Processes) -> None:
    config = Config(output_dir=str(tmp_path), data=DataConfig(validation=0.25))
    sweep(config, Grid({}, {"clients.lr": ["0.1", "0.2"]}, [0]), 1)
    assert not any("--data.validation" in command for command in processes.commands)


def test_runs_that_diverged_are_not_repeated(tmp_path: Path, processes: Processes) -> None:
    grid = Grid({"clients.lr": ["9"]}, {}, [0])
    assert play_grid(tmp_path, grid) == play_grid(tmp_path, grid)
    assert len(processes.commands) == 1


def test_a_run_that_cannot_start_ends_the_sweep_with_its_error(tmp_path: Path, processes: Processes) -> None:
    with pytest.raises(ValueError, match=r"status 2: error: data\.root: no such folder"):
        play_grid(tmp_path, Grid({"clients.lr": ["8", "0.1"]}, {}, [0]))
    assert len(processes.commands) == 1


def test_several_ranks_are_started_by_torchrun(tmp_path: Path, processes: Processes) -> None:
    play_grid(tmp_path, Grid({"clients.lr": ["0.1"]}, {}, [0]), ranks=3)
    assert processes.commands[0][1:7] == ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "3", "-m"]


def test_an_interrupt_ends_the_run_in_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(subprocess.Popen):
        def wait(self, timeout: float | None = None) -> int:
            if self.poll() is None and not hasattr(self, "interrupted"):
                self.interrupted = True
                started.append(self)
                raise KeyboardInterrupt
            return super().wait(timeout)

    started: list[Interrupted] = []
    monkeypatch.setattr(sweep_run.subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        sweep_run._run([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "log")
    assert started[0].poll() == -signal.SIGTERM
