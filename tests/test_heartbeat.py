"""A rank that hangs is named; one that has left, or has not come yet, is not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from types import SimpleNamespace

import pytest
from torch.distributed import HashStore

from flare_dist.comm import heartbeat as module
from flare_dist.comm.heartbeat import heartbeat
from tests.ranks import rank_processes

TIMEOUT = 1.5  # longer than a busy machine keeps a thread waiting
Named = list[list[int]]


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


def wait_for(condition: Named, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition and time.monotonic() < end:
        time.sleep(0.01)


def live(gave_up: Named) -> None:
    store = HashStore()
    with heartbeat(store, 0, 2, TIMEOUT), heartbeat(store, 1, 2, TIMEOUT):
        time.sleep(2 * TIMEOUT)
        assert store.add("alive/0", 0) > 5


def fall_silent(gave_up: Named) -> None:
    store = HashStore()
    store.add("alive/2", 1)  # one sign of life, and no more
    with heartbeat(store, 0, 3, TIMEOUT), heartbeat(store, 1, 3, TIMEOUT):
        wait_for(gave_up)


def stop_one_of_three(gave_up: Named) -> None:
    """Stop the signs of a rank without its leaving."""
    store = HashStore()
    with heartbeat(store, 0, 3, TIMEOUT), heartbeat(store, 1, 3, TIMEOUT):
        watch = module._Watch(store, 2, 3, TIMEOUT)
        thread = threading.Thread(target=watch.exchange_signs, daemon=True)
        thread.start()
        time.sleep(2 * TIMEOUT)
        assert not gave_up
        watch.store = Stopped(ended=False)
        wait_for(gave_up)


def come_late_or_leave(gave_up: Named) -> None:
    store = HashStore()
    with heartbeat(store, 0, 3, TIMEOUT):
        with heartbeat(store, 1, 3, TIMEOUT):
            time.sleep(TIMEOUT)
        time.sleep(2 * TIMEOUT)


def lose_the_store(gave_up: Named, ended: bool) -> None:
    with heartbeat(Stopped(ended), 1, 2, TIMEOUT):
        wait_for(gave_up, 2 * TIMEOUT)


def be_stopped(gave_up: Named) -> None:
    """Move the clock on, as between SIGSTOP and SIGCONT of this process."""
    store, shift = HashStore(), [0.0]
    clock = time.monotonic
    with heartbeat(store, 0, 2, TIMEOUT), heartbeat(store, 1, 2, TIMEOUT), pytest.MonkeyPatch.context() as patch:
        time.sleep(TIMEOUT)
        patch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock() + shift[0]))
        shift[0] = 1000.0
        time.sleep(2 * TIMEOUT)


STORIES: dict[str, Callable[[Named], None]] = {
    "live": live,
    "fall silent": fall_silent,
    "stop one of three": stop_one_of_three,
    "come late or leave": come_late_or_leave,
    "lose a stopped store": partial(lose_the_store, ended=False),
    "lose an ended store": partial(lose_the_store, ended=True),
    "be stopped": be_stopped,
}


def told(name: str) -> Named:
    """Play a story in this process, which goes on; tell whom its watching ranks gave up."""
    named: Named = []
    module._give_up = lambda silent, rank, timeout_seconds: named.append(silent)
    STORIES[name](named)
    return named


@pytest.fixture(scope="module")
def stories() -> Iterator[dict[str, Future[Named]]]:
    """Play all stories at a time, each in a process of its own: they do nothing but wait."""
    with rank_processes(len(STORIES)) as pool:
        yield {name: pool.submit(told, name) for name in STORIES}


@pytest.mark.parametrize("name", ["live", "come late or leave", "lose an ended store"])
def test_ranks_that_live_have_not_come_or_have_left_are_left_alone(
    name: str, stories: dict[str, Future[Named]]
) -> None:
    assert stories[name].result(60) == []


def test_who_was_stopped_itself_blames_nobody(stories: dict[str, Future[Named]]) -> None:
    """After SIGSTOP and SIGCONT of this process the others' last signs are old, and they are not to blame."""
    assert stories["be stopped"].result(60) == []


@pytest.mark.parametrize("name", ["fall silent", "stop one of three"])
def test_a_rank_that_falls_silent_is_named(name: str, stories: dict[str, Future[Named]]) -> None:
    assert stories[name].result(60)[0] == [2]


def test_a_store_that_does_not_answer_is_that_of_rank_0(stories: dict[str, Future[Named]]) -> None:
    assert stories["lose a stopped store"].result(60)[0] == [0]


def test_the_first_sign_is_given_at_once() -> None:
    """Long before the first interval is over: a rank that is stopped early would never be missed otherwise."""
    store = HashStore()
    with heartbeat(store, 1, 2, 600.0):
        end = time.monotonic() + 5
        while store.add("alive/1", 0) < 1:
            assert time.monotonic() < end
    assert store.add("alive/1", 0) < 0  # it has left


def test_every_rank_says_who_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    left: list[int] = []
    monkeypatch.setattr("os._exit", left.append)
    module._give_up([0, 2], 1, 60.0)
    assert left == [1]
    assert "rank 0, 2 has not answered rank 1 for 60 s" in capsys.readouterr().err


def test_the_threads_end_with_the_block() -> None:
    before = threading.active_count()
    with heartbeat(HashStore(), 0, 2, TIMEOUT):
        assert threading.active_count() == before + 2
    assert threading.active_count() == before
