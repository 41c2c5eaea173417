"""metrics.jsonl and the event file: one source, cut back together."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flare_dist.records import progress
from flare_dist.records.metrics import read_rows
from flare_dist.records.summary import summary_table
from flare_dist.records.tensorboard import tag
from flare_dist.records.tracking import Tracker

QUIET = Console(file=io.StringIO())


def row(round_: int) -> dict[str, float]:
    return {"round": round_, "test_accuracy": round_ / 10, "test_loss": 1.0, "uplink_bytes": 100, "round_seconds": 0.5}


def steps(directory: Path, name: str) -> list[int]:
    return [event.step for event in EventAccumulator(str(directory)).Reload().Scalars(name)]


def test_rows_reach_both_logs(tmp_path: Path) -> None:
    with Tracker(tmp_path, [], 3, QUIET) as tracker:
        for round_ in range(3):
            tracker.write(row(round_))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [r["round"] for r in rows] == [0, 1, 2]
    assert all({**row(r["round"])}.items() <= r.items() for r in rows)
    assert steps(tmp_path, "accuracy/test") == steps(tmp_path, "bytes/uplink") == [0, 1, 2]


def test_both_logs_are_cut_back_to_the_round_resumed_from(tmp_path: Path) -> None:
    with Tracker(tmp_path, [], 9, QUIET) as tracker:
        for round_ in range(6):
            tracker.write(row(round_))
        seconds = tracker.rows[2]["elapsed_seconds"]
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"round": 6, "test_acc')  # a kill in the middle of a line
    kept = read_rows(tmp_path, up_to=2)
    assert [r["round"] for r in kept] == [0, 1, 2]
    with Tracker(tmp_path, kept, 9, QUIET) as tracker:
        assert tracker.elapsed_seconds >= seconds
        tracker.write(row(3))
    assert [json.loads(line)["round"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [0, 1, 2, 3]
    assert steps(tmp_path, "accuracy/test") == [0, 1, 2, 3]
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 1


def test_unreadable_lines_are_left_out_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("flare_dist"), "propagate", True)
    lines = [json.dumps(row(round_)) for round_ in range(4)]
    lines[1:2] = ["5", "{}", '"x"', '{"round": "a"}', '{"round": 1, "uplink_bytes": "9"}', '{"rou']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    with caplog.at_level("WARNING", logger="flare_dist"):
        assert [r["round"] for r in read_rows(tmp_path, up_to=3)] == [0, 2, 3]
    assert "no readable line for rounds 1: totals are incomplete" in caplog.text


def test_lines_of_progress_where_there_is_no_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr(logging.getLogger("flare_dist"), "propagate", True)
    with Tracker(tmp_path, [], 4, QUIET) as tracker, caplog.at_level("INFO", logger="flare_dist"):
        tracker.write(row(0))
        tracker.write(row(1))
    assert "round 1/4  accuracy 0.1000  200 B sent  ETA" in caplog.text


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("test_accuracy", "accuracy/test"),
        ("validation_loss", "loss/validation"),
        ("uplink_bytes", "bytes/uplink"),
        ("waiting_seconds", "seconds/waiting"),
        ("slowest_client_seconds", "seconds/slowest_client"),
        ("rejected_clients", "clients/rejected_clients"),
        ("round", None),
        ("kept", None),
    ],
)
def test_tags(key: str, expected: str | None) -> None:
    assert tag(key) == expected


def test_bytes_of_buffers_count_in_the_bar_and_in_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with Tracker(tmp_path, [], 2, QUIET) as tracker, caplog.at_level("INFO", logger="flare_dist"):
        tracker.write(row(1) | {"uplink_bytes": 10**9, "buffer_bytes": 4 * 10**7})
    assert "1.04 GB sent" in caplog.text
    summary = dict.fromkeys(("test_accuracy", "best_accuracy", "seconds", "rounds"), 1)
    summary |= {"uplink_bytes": 10**9, "buffer_bytes": 4 * 10**7, "dense_bytes": 8 * 10**9, "downlink_bytes": 10**12}
    console = Console(file=io.StringIO(), width=200)
    console.print(summary_table(summary))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for words in ("1,040,000,000 (1.04 GB)", "40,000,000 (40 MB)", "7.7 x", "(1 TB)"):
        assert words in shown


def test_summary_table_of_a_run_that_sent_nothing() -> None:
    summary = dict.fromkeys(("test_accuracy", "best_accuracy", "seconds"), 0.5) | dict.fromkeys(
        ("uplink_bytes", "dense_bytes", "downlink_bytes", "rounds"), 0
    )
    console = Console(file=io.StringIO())
    console.print(summary_table(summary))
    assert "nothing was sent" in console.file.getvalue()  # type: ignore[attr-defined]
