"""A rank that hangs is named; one that has left, or has not come yet, is not."""

from __future__ import annotations

import threading
import time

import pytest
from torch.distributed import HashStore

from flare_dist.comm import heartbeat as module
from flare_dist.comm.heartbeat import heartbeat

TIMEOUT = 0.5


@pytest.fixture
def gave_up(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Whom the watching rank gave up; its process goes on."""
    named: list[list[int]] = []
    monkeypatch.setattr(module, "_give_up", lambda silent, rank, seconds: named.append(silent))
    return named


def wait_for(condition: list[list[int]], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition and time.monotonic() < end:
        time.sleep(0.01)


def test_ranks_that_live_are_left_alone(gave_up: list[list[int]]) -> None:
    store = HashStore()
    with heartbeat(store, 0, 2, TIMEOUT), heartbeat(store, 1, 2, TIMEOUT):
        time.sleep(4 * TIMEOUT)
        assert store.add("alive/0", 0) > 5
    assert not gave_up


def test_a_rank_that_falls_silent_is_named(gave_up: list[list[int]]) -> None:
    store = HashStore()
    store.add("alive/2", 1)  # one sign of life, and no more
    with heartbeat(store, 0, 3, TIMEOUT), heartbeat(store, 1, 3, TIMEOUT):
        wait_for(gave_up)
    assert gave_up[0] == [2]


def test_a_rank_that_has_not_come_or_has_left_is_not_waited_for(gave_up: list[list[int]]) -> None:
    store = HashStore()
    with heartbeat(store, 0, 3, TIMEOUT):
        with heartbeat(store, 1, 3, TIMEOUT):
            time.sleep(TIMEOUT)
        time.sleep(4 * TIMEOUT)
    assert not gave_up


class Stopped:
    """The store of a stopped process: what is asked of it is not answered in time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def add(self, key: str, amount: int, /) -> int:
        time.sleep(self.seconds)
        raise RuntimeError("timeout")


@pytest.mark.parametrize(("seconds", "named"), [(TIMEOUT, [[0]]), (0.0, [])])
def test_a_store_that_does_not_answer_is_that_of_rank_0(
    gave_up: list[list[int]], seconds: float, named: list[list[int]]
) -> None:
    with heartbeat(Stopped(seconds), 1, 2, TIMEOUT):
        wait_for(gave_up, 4 * TIMEOUT)
    assert gave_up == named


@pytest.mark.parametrize(("rank", "speaks"), [(1, True), (3, False), (4, False)])
def test_the_first_rank_that_answers_says_who_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: int, speaks: bool
) -> None:
    left: list[int] = []
    monkeypatch.setattr("os._exit", left.append)
    module._give_up([0, 2], rank, 60.0)
    assert left == [1]
    said = capsys.readouterr().err
    assert ("rank 0, 2 has not answered for 60 s" in said) == speaks


def test_the_thread_ends_with_the_block(gave_up: list[list[int]]) -> None:
    before = threading.active_count()
    with heartbeat(HashStore(), 0, 2, TIMEOUT):
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
