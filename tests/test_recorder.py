"""What a run leaves as it goes, on rank 0 and on others."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from flare_dist.comm.launch import Launch
from flare_dist.comm.world import World
from flare_dist.config.config import Config
from flare_dist.errors import ReportedError
from flare_dist.run.recorder import Recorder
from flare_dist.run.trainer import train
from tests.helpers.runs import tiny


def recorder(tmp_path: Path, tracker: Any, on_round: Any = None, **settings: Any) -> Recorder:
    world = World()
    world.host_number = 0 if tracker else 1  # host 0 measures and writes
    run: Any = SimpleNamespace(world=world, task=SimpleNamespace(best=("loss", "min")))
    config = Config(output_dir=str(tmp_path), **settings)
    return Recorder(config, run, tracker, lambda: {"test_loss": 0.5}, {}, on_round)


class Log:
    """A tracker that remembers."""

    elapsed_seconds = 0.0

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = [{"round": 0, "test_loss": 0.1}]  # the best
        self.said: list[str] = []

    def write(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self.said.append("write")

    def sync(self) -> None:
        self.said.append("sync")


def test_the_caller_is_given_the_row_that_is_logged(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    config = dataclasses.replace(tiny(tmp_path), rounds=2, eval_every=2)
    config = dataclasses.replace(config, engine=dataclasses.replace(config.engine, device="cpu", threads=1))
    train(config, Launch(0, 1, 0, 1), Console(quiet=True), rows.append)
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == [1, 2]
    assert [row.get("test_loss") for row in rows] == [row.get("test_loss") for row in logged if row["round"]]


def test_an_evaluation_is_due_every_so_many_rounds_and_in_the_last(tmp_path: Path) -> None:
    log = Log()
    kept = recorder(tmp_path, log, rounds=5, eval_every=2)
    for round_ in range(1, 6):
        kept.write({"round": round_}, is_saved=False)
    assert [row["round"] for row in log.rows if "test_loss" in row] == [0, 2, 4, 5]


def test_logs_are_on_the_disk_before_a_checkpoint(tmp_path: Path) -> None:
    log = Log()
    kept = recorder(tmp_path, log)
    kept.write({"round": 1}, is_saved=False)
    kept.write({"round": 2}, is_saved=True)
    assert log.said == ["write", "write", "sync"]


def test_a_rank_without_logs_writes_nothing_and_tells_its_caller(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    other = recorder(tmp_path, None, rows.append)
    other.begin({})
    other.write({"round": 1}, is_saved=True)
    assert other.finish() == {}
    assert rows == [{"round": 1}]
    assert not list(tmp_path.iterdir())


def test_an_error_of_the_disk_ends_the_run(tmp_path: Path) -> None:
    log = Log()
    log.sync = lambda: (_ for _ in ()).throw(ReportedError("output_dir: full"))  # type: ignore[method-assign]
    with pytest.raises(ReportedError, match=r"^output_dir: full"):
        recorder(tmp_path, log).write({"round": 1}, is_saved=True)
