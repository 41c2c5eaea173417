"""The records of a run are read whether it came to its end or not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import flare_dist


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
