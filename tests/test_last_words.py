"""Why a rank failed is known to all, and nobody waits for one that has left."""

from __future__ import annotations

import threading
import time

import pytest
from torch.distributed import HashStore

from flare_dist.comm.heartbeat import heartbeat
from flare_dist.comm.last_words import SECONDS_TO_BE_HEARD, LastWords, PeerFailedError
from flare_dist.errors import AgreedError

TIMEOUT = 5.0


def test_the_others_name_the_rank_that_failed_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    store = HashStore()
    words = [LastWords(store, rank, 3) for rank in range(3)]
    assert not words[0].hear()
    speaking = threading.Thread(target=words[1].say, args=(LookupError("no such\nthing"),))
    speaking.start()
    speaking.join(0.2)
    assert speaking.is_alive()  # until both know
    for rank in (0, 2):
        while not words[rank].hear():
            time.sleep(0.01)
    speaking.join(1.0)
    assert not speaking.is_alive()
    assert words[0].hear() == "rank 1 has failed: LookupError: no such thing"
    assert capsys.readouterr().err.splitlines() == ["error: rank 1 has failed: LookupError: no such thing"] * 2


def test_a_rank_that_left_is_not_waited_for() -> None:
    store = HashStore()
    LastWords(store, 0, 2).know()
    start = time.monotonic()
    LastWords(store, 1, 2).say(ValueError("late"))
    assert time.monotonic() - start < SECONDS_TO_BE_HEARD


def test_a_rank_that_does_not_answer_is_waited_for_a_short_time() -> None:
    start = time.monotonic()
    LastWords(HashStore(), 1, 2).say(ValueError("alone"))
    assert SECONDS_TO_BE_HEARD <= time.monotonic() - start < SECONDS_TO_BE_HEARD + 5


def raise_on_two_ranks(first: BaseException, second: BaseException, seconds: float = 0.0) -> list[BaseException]:
    """Raise `first` on rank 0, and so many seconds later `second` on rank 1; returns what leaves their heartbeats."""
    store = HashStore()
    raised: list[BaseException] = [first, second]

    def fail(rank: int) -> None:
        try:
            with heartbeat(store, rank, 2, TIMEOUT):
                time.sleep(rank * seconds)
                raise raised[rank]
        except BaseException as error:
            raised[rank] = error

    threads = [threading.Thread(target=fail, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return raised


def test_what_breaks_because_a_peer_failed_is_laid_to_the_peer() -> None:
    _, second = raise_on_two_ranks(LookupError("the cause"), RuntimeError("Connection closed by peer"), 1.5)
    assert isinstance(second, PeerFailedError)
    assert str(second) == "rank 0 has failed: LookupError: the cause"


def test_an_error_of_a_rank_s_own_stays(capsys: pytest.CaptureFixture[str]) -> None:
    _, second = raise_on_two_ranks(LookupError("the cause"), LookupError("another"), 1.5)
    assert str(second) == "another"


def test_an_error_that_all_have_is_no_news(capsys: pytest.CaptureFixture[str]) -> None:
    start = time.monotonic()
    first, second = raise_on_two_ranks(AgreedError("full"), AgreedError("full"), 1.0)
    assert isinstance(first, AgreedError)
    assert isinstance(second, AgreedError)
    assert capsys.readouterr().err == ""
    assert time.monotonic() - start < 1.0 + SECONDS_TO_BE_HEARD
