"""A tracker in another thread holds up nothing, neither while it is opened nor while it fails."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from flare_dist.records import background
from flare_dist.records.background import Background
from flare_dist.records.trackers import Point, Send

POINT = Point(1, 0.0, {"loss/train": 1.0})


def test_nobody_waits_for_a_tracker_that_hangs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(background, "PATIENCE_SECONDS", 0.05)
    answer = threading.Event()

    @contextmanager
    def hanging() -> Iterator[Send]:
        answer.wait(30)
        yield lambda point: None

    tracker = Background("wandb", hanging())
    tracker.send(POINT)
    tracker.close(finished=True)
    answer.set()
    assert [record.getMessage() for record in caplog.records] == [
        "tracking: wandb has not taken all values in time; the run ends without them"
    ]


@pytest.mark.parametrize("error", [ImportError("no module"), SystemExit(1), OSError(113, "No route to host")])
def test_a_tracker_that_cannot_be_opened_is_one_warning(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    @contextmanager
    def failing() -> Iterator[Send]:
        raise error
        yield

    tracker = Background("mlflow", failing())
    for _ in range(3):
        tracker.send(POINT)
    tracker.close(finished=False)
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert message.startswith("tracking: mlflow failed: ")
    assert message.endswith("; the run goes on without it")
    assert not [thread for thread in threading.enumerate() if thread.name == "tracking by mlflow"]
