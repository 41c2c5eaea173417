"""The progress of a run, on an output that is no terminal."""

from __future__ import annotations

import io
import logging
import re
from pathlib import Path

import pytest
from rich.console import Console

from flare_dist.config.config import Config
from flare_dist.records import progress
from flare_dist.records.progress import RoundProgress
from flare_dist.records.tracking import Tracker

QUIET = Console(file=io.StringIO())


def row(round_: int) -> dict[str, float]:
    return {"round": round_, "test_accuracy": round_ / 10, "test_loss": 1.0, "uplink_bytes": 100, "round_seconds": 0.5}


def test_progress_is_logged_in_lines_if_there_is_no_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr(logging.getLogger("flare_dist"), "propagate", True)
    config = Config(rounds=4, output_dir=str(tmp_path))
    with Tracker(config, [], QUIET) as tracker, caplog.at_level("INFO", logger="flare_dist"):
        tracker.write(row(0))
        tracker.write(row(1))
    assert "round 0/4  accuracy 0.0000  100 B sent  ETA -" in caplog.text
    assert re.search(r"round 1/4  accuracy 0.1000  200 B sent  ETA \d+ s", caplog.text)


def test_bytes_of_buffers_count_as_sent(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    shown = RoundProgress([], 2, QUIET, "accuracy")
    with caplog.at_level("INFO", logger="flare_dist"):
        shown.update(row(1) | {"uplink_bytes": 10**9, "buffer_bytes": 4 * 10**7})
    assert "1.04 GB sent" in caplog.text


def test_log_every_gives_every_so_many_rounds_a_line(caplog: pytest.LogCaptureFixture) -> None:
    shown = RoundProgress([], 7, QUIET, "accuracy", log_every=3)
    with caplog.at_level("INFO", logger="flare_dist"):
        for round_ in range(1, 8):
            shown.update(row(round_))
    assert [line.split()[1] for line in caplog.messages] == ["3/7", "6/7", "7/7"]
