"""The records of a run are read whether it came to its end or not."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchmetrics import Metric

import flare_dist
from flare_dist.tasks.config import TaskConfig
from tests.helpers.runs import start, tiny


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path: Path) -> None:
    run = flare_dist.FinishedRun(tmp_path)
    assert run.metrics == run.clients == []
    rows = [{"round": round_, "test_loss": 1.0} for round_ in range(3)]
    for name in ("metrics.jsonl", "clients.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"round": 3, "test_lo')
    assert run.metrics == run.clients == rows
    assert list(run.frame()["round"]) == [0, 1, 2]
    with pytest.raises(ValueError, match=r"^run: .* is not finished; flare_dist\.train\(run\) goes on with it$"):
        _ = run.summary


def test_runs_are_told_apart_by_their_directory(tmp_path: Path) -> None:
    run = flare_dist.FinishedRun(tmp_path, {"model": [1]})
    assert {run, flare_dist.FinishedRun(tmp_path)} == {run}
    assert run != flare_dist.FinishedRun(tmp_path / "other")


class Nothing(Metric):
    """A metric of what is not there."""

    def update(self, outputs: Tensor, labels: Tensor) -> None:
        pass

    def compute(self) -> Tensor:
        return torch.tensor(math.nan)


def nothing(classes: int) -> Metric:
    return Nothing()


def test_a_metric_that_is_no_number_is_null_on_the_disk_and_nan_here(tmp_path: Path) -> None:
    start(tiny(tmp_path, rounds=1, task=TaskConfig(metrics=("tests.test_finished:nothing",))))

    def refuse(constant: str) -> Any:
        raise AssertionError(constant)

    rows = [json.loads(line, parse_constant=refuse) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((tmp_path / "summary.json").read_text(), parse_constant=refuse)
    assert rows[1]["test_nothing"] is summary["test_nothing"] is None
    run = flare_dist.FinishedRun(tmp_path)
    assert math.isnan(run.metrics[1]["test_nothing"])
    assert math.isnan(run.summary["test_nothing"])
