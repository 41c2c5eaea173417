"""metrics.jsonl, the event file and other trackers: one source, cut back together."""

from __future__ import annotations

import errno
import io
import json
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flare_dist.config.config import Config, with_values
from flare_dist.disk import DiskError
from flare_dist.records import tracking
from flare_dist.records.metrics import read_rows
from flare_dist.records.rundir import METRICS
from flare_dist.records.trackers import Point, Send, TrackedRun
from flare_dist.records.tracking import Tracker
from tests.helpers.disks import no_file_longer_than

QUIET = Console(file=io.StringIO())


def row(round_: int) -> dict[str, float]:
    return {"round": round_, "test_accuracy": round_ / 10, "test_loss": 1.0, "uplink_bytes": 100, "round_seconds": 0.5}


def tracker(directory: Path, rows: Any = (), **changes: Any) -> Tracker:
    config = with_values(Config(rounds=9, output_dir=str(directory)), changes)
    return Tracker(config, rows, QUIET)


def steps(directory: Path, name: str) -> list[int]:
    return [event.step for event in EventAccumulator(str(directory)).Reload().Scalars(name)]


def test_rows_reach_both_logs(tmp_path: Path) -> None:
    with tracker(tmp_path) as log:
        for round_ in range(3):
            log.write(row(round_))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [r["round"] for r in rows] == [0, 1, 2]
    assert all({**row(r["round"])}.items() <= r.items() for r in rows)
    assert steps(tmp_path, "accuracy/test") == steps(tmp_path, "bytes/uplink") == [0, 1, 2]


def test_texts_are_on_tensorboards_page_of_texts(tmp_path: Path) -> None:
    config = Config(output_dir=str(tmp_path))
    with Tracker(config, [], QUIET, texts={"partition": "| client | bern |"}) as log:
        log.write(row(0))
    events = EventAccumulator(str(tmp_path)).Reload()
    (text,) = events.Tensors("partition/text_summary")
    assert text.tensor_proto.string_val[0].decode() == "| client | bern |"
    assert steps(tmp_path, "accuracy/test") == [0]


def test_both_logs_are_cut_back_to_the_round_resumed_from(tmp_path: Path) -> None:
    with tracker(tmp_path) as log:
        for round_ in range(6):
            log.write(row(round_))
        seconds = log.rows[2]["elapsed_seconds"]
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"round": 6, "test_acc')  # a kill in the middle of a line
    kept = read_rows(tmp_path, up_to=2)
    assert [r["round"] for r in kept] == [0, 1, 2]
    with tracker(tmp_path, kept) as log:
        assert log.elapsed_seconds >= seconds
        log.write(row(3))
    assert [json.loads(line)["round"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [0, 1, 2, 3]
    assert steps(tmp_path, "accuracy/test") == [0, 1, 2, 3]
    sums = EventAccumulator(str(tmp_path)).Reload().Scalars("cumulative_bytes/up")
    assert [event.value for event in sums] == [100, 200, 300, 400]
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 1


def test_logs_end_with_one_error_and_without_a_thread(tmp_path: Path) -> None:
    row = {"round": 0, "test_loss": 1.0}

    def write_until_full() -> None:
        with tracker(tmp_path, tracking=()) as log, no_file_longer_than(300):
            for _ in range(100):
                log.write(row)

    before = threading.active_count()
    with pytest.raises(DiskError, match=rf"^output_dir: cannot write {tmp_path / METRICS}: File too large"):
        write_until_full()
    assert threading.active_count() == before


def test_a_full_disk_ends_the_event_file_with_the_same_error(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match=rf"^output_dir: cannot write {tmp_path / METRICS}: File too large"):  # noqa: SIM117
        with tracker(tmp_path) as log, no_file_longer_than(300):
            log.write({"round": 0, "test_loss": 1.0})


def test_without_tensorboard_there_is_no_event_file(tmp_path: Path) -> None:
    with tracker(tmp_path) as log:
        log.write(row(0))
    assert len(list(tmp_path.glob("events.*"))) == 1
    with tracker(tmp_path, read_rows(tmp_path, 0), tracking=()) as log:
        log.write(row(1))
    assert not list(tmp_path.glob("events.*"))
    assert len((tmp_path / METRICS).read_text().splitlines()) == 2


class Listener:
    """A tracker that remembers what it hears, and fails in one round."""

    def __init__(self, fails_in: int | None = None) -> None:
        self.runs: list[TrackedRun] = []
        self.heard: list[Point] = []
        self.ends: list[bool] = []
        self.fails_in = fails_in

    @contextmanager
    def __call__(self, run: TrackedRun) -> Iterator[Send]:
        self.runs.append(run)
        try:
            yield self.hear
        except BaseException:
            self.ends.append(False)
            raise
        self.ends.append(True)

    def hear(self, point: Point) -> None:
        if point.round == self.fails_in:
            raise ConnectionError("no route\nto host")
        self.heard.append(point)


def test_other_trackers_hear_what_tensorboard_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listener = Listener()
    monkeypatch.setitem(tracking.TRACKERS, "wandb", listener)
    with tracker(tmp_path, tracking=("tensorboard", "wandb", "wandb")) as log:
        for round_ in range(3):
            log.write(row(round_))
    assert len(listener.runs) == 1
    assert listener.runs[0].directory == tmp_path
    assert listener.runs[0].config["rounds"] == 9
    assert listener.ends == [True]
    assert [point.round for point in listener.heard] == [0, 1, 2]
    shown = EventAccumulator(str(tmp_path)).Reload()
    assert listener.heard[2].values.keys() == set(shown.Tags()["scalars"])
    assert listener.heard[2].values["cumulative_bytes/up"] == 300


def test_a_tracker_that_fails_costs_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failing, other = Listener(fails_in=1), Listener()
    monkeypatch.setitem(tracking.TRACKERS, "wandb", failing)
    monkeypatch.setitem(tracking.TRACKERS, "mlflow", other)
    with caplog.at_level("WARNING"), tracker(tmp_path, tracking=("tensorboard", "wandb", "mlflow")) as log:
        for round_ in range(4):
            log.write(row(round_))
    assert [record.getMessage() for record in caplog.records] == [
        "tracking: wandb failed: no route to host; the run goes on without it"
    ]
    assert [point.round for point in failing.heard] == [0]
    assert [point.round for point in other.heard] == steps(tmp_path, "loss/test") == [0, 1, 2, 3]


def test_a_resumed_run_tells_trackers_of_the_rounds_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listener = Listener()
    monkeypatch.setitem(tracking.TRACKERS, "mlflow", listener)
    with suppress(KeyboardInterrupt), tracker(tmp_path, tracking=("mlflow",)) as log:
        for round_ in range(3):
            log.write(row(round_))
        raise KeyboardInterrupt
    assert listener.ends == [False]
    with tracker(tmp_path, read_rows(tmp_path, 1), tracking=("mlflow",)) as log:
        log.write(row(2))
    assert listener.ends == [False, True]
    assert [point.round for point in listener.runs[1].earlier] == [0, 1]
    assert listener.heard[3].values["cumulative_bytes/up"] == 300


def test_a_metric_that_is_not_finite_is_null(tmp_path: Path) -> None:
    """AUROC of a group of one class, and a perplexity beyond all numbers."""
    found = {"round": 0, "test_perplexity": math.inf, "groups": {"a": {"auroc": math.nan}}}
    with tracker(tmp_path, [found | {"time": 1.0}]) as log:
        log.write(found | {"round": 1, "participants": [{"client": 3, "personal_perplexity": math.inf}]})
    texts = [(tmp_path / name).read_text() for name in ("metrics.jsonl", "clients.jsonl")]
    assert "NaN" not in "".join(texts)
    assert "Infinity" not in "".join(texts)
    for row in read_rows(tmp_path):
        assert math.isnan(row["test_perplexity"])
        assert math.isnan(row["groups"]["a"]["auroc"])
    assert json.loads(texts[1])["personal_perplexity"] is None


def test_a_log_that_cannot_be_closed_leaves_no_other_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listener = Listener()
    monkeypatch.setitem(tracking.TRACKERS, "mlflow", listener)
    log = tracker(tmp_path, tracking=("tensorboard", "mlflow"))
    log.write(row(0))
    whole = log._metrics

    class Full:
        """A file on a disk that is full as its buffer is written."""

        def close(self) -> None:
            whole.close()
            raise OSError(errno.ENOSPC, "No space left on device")

    log._metrics = Full()  # type: ignore[assignment]
    with pytest.raises(DiskError, match=rf"^output_dir: cannot write {tmp_path / METRICS}: No space left"):
        log.__exit__(None)
    assert listener.ends == [True]
    assert log._events is not None
    assert log._events._file.closed
    assert log._clients._file.closed
