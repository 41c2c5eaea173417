"""A rank that hangs is named; one that has left, or has not come yet, is not."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest
from torch.distributed import HashStore

from flare_dist.comm import heartbeat as module
from flare_dist.comm.heartbeat import heartbeat

TIMEOUT = 1.5  # longer than a busy machine keeps a thread waiting


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
        time.sleep(2 * TIMEOUT)
        assert store.add("alive/0", 0) > 5
    assert not gave_up


def test_a_rank_that_falls_silent_is_named(gave_up: list[list[int]]) -> None:
    store = HashStore()
    store.add("alive/2", 1)  # one sign of life, and no more
    with heartbeat(store, 0, 3, TIMEOUT), heartbeat(store, 1, 3, TIMEOUT):
        wait_for(gave_up)
    assert gave_up[0] == [2]


def test_the_first_sign_is_given_at_once() -> None:
    """Long before the first interval is over: a rank that is stopped early would never be missed otherwise."""
    store = HashStore()
    with heartbeat(store, 1, 2, 600.0):
        end = time.monotonic() + 5
        while store.add("alive/1", 0) < 1:
            assert time.monotonic() < end
    assert store.add("alive/1", 0) < 0  # it has left


def test_ranks_are_told_apart(gave_up: list[list[int]]) -> None:
    """Three ranks, of which one stops giving signs without leaving."""
    store = HashStore()
    with heartbeat(store, 0, 3, TIMEOUT), heartbeat(store, 1, 3, TIMEOUT):
        watch = module._Watch(store, 2, 3, TIMEOUT)
        thread = threading.Thread(target=watch.exchange_signs, daemon=True)
        thread.start()
        time.sleep(2 * TIMEOUT)
        assert not gave_up
        watch.store = Stopped(ended=False)
        wait_for(gave_up)
    assert gave_up[0] == [2]


def test_a_rank_that_has_not_come_or_has_left_is_not_waited_for(gave_up: list[list[int]]) -> None:
    store = HashStore()
    with heartbeat(store, 0, 3, TIMEOUT):
        with heartbeat(store, 1, 3, TIMEOUT):
            time.sleep(TIMEOUT)
        time.sleep(2 * TIMEOUT)
    assert not gave_up


class Stopped:
    """The store of a stopped process never answers; that of an ended one ends the connection."""

    def __init__(self, ended: bool) -> None:
        self.ended = ended

    def add(self, key: str, amount: int, /) -> int:
        if self.ended:
            raise RuntimeError("Connection reset by peer")
        time.sleep(4 * TIMEOUT)
        return 0

    def set(self, key: str, value: str, /) -> None:
        self.add(key, 0)

    def get(self, key: str, /) -> bytes:
        return bytes(self.add(key, 0))


@pytest.mark.parametrize(("ended", "named"), [(False, [0]), (True, None)])
def test_a_store_that_does_not_answer_is_that_of_rank_0(
    gave_up: list[list[int]], ended: bool, named: list[int] | None
) -> None:
    with heartbeat(Stopped(ended), 1, 2, TIMEOUT):
        wait_for(gave_up, 2 * TIMEOUT)
    assert (gave_up[0] if gave_up else None) == named


def test_who_was_stopped_itself_blames_nobody(gave_up: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    """After SIGSTOP and SIGCONT of this process the others' last signs are old, and they are not to blame."""
    store, shift = HashStore(), [0.0]
    clock = time.monotonic
    with heartbeat(store, 0, 2, TIMEOUT), heartbeat(store, 1, 2, TIMEOUT):
        time.sleep(TIMEOUT)
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock() + shift[0]))
        shift[0] = 1000.0
        time.sleep(2 * TIMEOUT)
    assert not gave_up


def test_every_rank_says_who_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    left: list[int] = []
    monkeypatch.setattr("os._exit", left.append)
    module._give_up([0, 2], 1, 60.0)
    assert left == [1]
    assert "rank 0, 2 has not answered rank 1 for 60 s" in capsys.readouterr().err


def test_the_threads_end_with_the_block(gave_up: list[list[int]]) -> None:
    before = threading.active_count()
    with heartbeat(HashStore(), 0, 2, TIMEOUT):
        assert threading.active_count() == before + 2
    assert threading.active_count() == before
