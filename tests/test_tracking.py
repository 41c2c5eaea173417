"""metrics.jsonl and the event file: one source, cut back together."""

from __future__ import annotations

import io
import json
import threading
from pathlib import Path

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flare_dist.disk import DiskError
from flare_dist.records.metrics import read_rows
from flare_dist.records.rundir import METRICS
from flare_dist.records.tracking import Tracker
from tests.helpers.disks import no_file_longer_than

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


def test_texts_are_on_tensorboards_page_of_texts(tmp_path: Path) -> None:
    with Tracker(tmp_path, [], 3, QUIET, texts={"partition": "| client | bern |"}) as tracker:
        tracker.write(row(0))
    events = EventAccumulator(str(tmp_path)).Reload()
    (text,) = events.Tensors("partition/text_summary")
    assert text.tensor_proto.string_val[0].decode() == "| client | bern |"
    assert steps(tmp_path, "accuracy/test") == [0]


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


def test_logs_end_with_one_error_and_without_a_thread(tmp_path: Path) -> None:
    row = {"round": 0, "test_loss": 1.0}

    def write_until_full() -> None:
        with Tracker(tmp_path, [], 3, Console(file=io.StringIO())) as tracker, no_file_longer_than(300):
            for _ in range(100):
                tracker.write(row)

    before = threading.active_count()
    with pytest.raises(DiskError, match=rf"^output_dir: cannot write {tmp_path / METRICS}: File too large"):
        write_until_full()
    assert threading.active_count() == before
