"""Signs of life between the ranks, so that one that hangs ends the run and is named.

A rank may wait long for another in a collective, for it may be training; what it must not do is wait for one that is
stopped. So each rank counts up in the launcher's store from a thread of its own and looks at the others' counts; a
second thread looks at the clock, because a store whose process is stopped never answers. A process that lives may have
stopped to train, so the ranks also tell how far they have come (rank_progress.py), and why they fail (last_words.py).
Deaths need no watching: the launcher and the broken connections report them at once.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from flare_dist.comm.last_words import LastWords, PeerFailedError, Store
from flare_dist.comm.rank_progress import RankProgress
from flare_dist.comm.step_watch import StepWatch
from flare_dist.errors import OutOfMemoryError, ReportedError

LEFT = -(2**40)  # added to the count of a rank that has left
LISTENING_SECONDS = 0.5  # between two looks for the last words of others
SECONDS_AFTER = 5.0  # until a rank ends that has heard of a failure; the launcher is quicker, if there is one


@contextmanager
def heartbeat(
    store: Store,
    rank: int,
    size: int,
    timeout_seconds: float,
    progress: RankProgress | None = None,
    step_seconds: float | None = None,
) -> Iterator[None]:
    """End this process if another rank gives no sign of life for `timeout_seconds` while the block runs.

    So do ranks whose steps have stopped for `step_seconds` while others wait for them; None = off. If the block raises,
    the other ranks are told why, and end; if it raises because another has failed, PeerFailedError is raised instead.

    A rank is watched from its first sign to the end of its block; `store` is used from another thread.
    """
    watch = _Watch(store, rank, size, timeout_seconds, progress, step_seconds)
    threads = [threading.Thread(target=work, daemon=True) for work in (watch.exchange_signs, watch.look_at_the_clock)]
    for thread in threads:
        thread.start()

    def stop() -> bool:
        watch.done.set()
        for thread in threads:
            thread.join(2.0)  # so that the others hear that this rank has left
        return watch.answered is not None and not any(thread.is_alive() for thread in threads)

    try:
        yield
    except BaseException as error:
        is_broken_off = isinstance(error, RuntimeError) and not isinstance(error, OutOfMemoryError | ReportedError)
        if watch.words.heard and is_broken_off:  # the connections to the rank that failed have ended
            raise PeerFailedError(watch.words.heard) from error
        if stop() and not getattr(error, "is_agreed", False):
            watch.tell(error)
        raise
    finally:
        stop()


class _Watch:
    """One rank's view of the others: when each has last changed its counts, on this process's monotonic clock."""

    def __init__(
        self,
        store: Store,
        rank: int,
        size: int,
        timeout_seconds: float,
        progress: RankProgress | None = None,
        step_seconds: float | None = None,
    ) -> None:
        self.store = store
        self.rank = rank
        self.timeout_seconds = timeout_seconds
        self.interval = min(5.0, timeout_seconds / 10, (step_seconds or 600) / 10)
        self.done = threading.Event()
        self.counts = dict.fromkeys((other for other in range(size) if other != rank), 0)
        self.seen = dict.fromkeys(self.counts, time.monotonic())
        self.answered: float | None = time.monotonic()  # by the store; None once it has ended
        self.words = LastWords(store, rank, size)
        self.steps = StepWatch(store, rank, size, progress or RankProgress(), step_seconds)

    def exchange_signs(self) -> None:
        """Count up, and note whose count has changed; in between listen to whoever fails.

        The first sign comes at once: a rank that is stopped before it would be taken for one that has not come yet.
        """
        try:
            while True:
                self.store.add(f"alive/{self.rank}", 1)
                for other, before in self.counts.items():
                    count = self.store.add(f"alive/{other}", 0)
                    if count != before or count <= 0:  # it has not come yet, or has left
                        self.counts[other] = count
                        self.seen[other] = time.monotonic()
                self.steps.exchange(self.counts)
                self.answered = time.monotonic()
                if self._listen_until(self.answered + self.interval):
                    break
            self.store.add(f"alive/{self.rank}", LEFT)
            self.words.know()
        except RuntimeError:
            self.answered = None  # whoever holds the store has ended, which others will report

    def _listen_until(self, end: float) -> bool:
        """Listen for failures of others, and end this process some time after one; tell if the block is over."""
        while (left := end - time.monotonic()) > 0:
            if self.words.hear():
                if not self.done.wait(SECONDS_AFTER):
                    os._exit(1)
                return True
            self.answered = time.monotonic()
            if self.done.wait(min(left, LISTENING_SECONDS)):
                return True
        return self.done.is_set()

    def look_at_the_clock(self) -> None:
        """End the process where somebody's time is over."""
        before = time.monotonic()
        while not self.done.wait(self.interval):
            now = time.monotonic()
            answered = self.answered
            if answered is None or self.words.heard:
                return
            if now - before > 3 * self.interval + 1:  # it was this process that did not run
                self.seen = dict.fromkeys(self.seen, now)
                self.steps.begin_again(now)
                self.answered = now
            elif now - answered > self.timeout_seconds:
                _give_up([0], self.rank, self.timeout_seconds)  # without a launcher's agent rank 0 holds the store
            else:
                silent = [other for other, last in self.seen.items() if now - last > self.timeout_seconds]
                late = self.steps.late()
                if silent:
                    _give_up(silent, self.rank, self.timeout_seconds)
                elif late:
                    _end(self.steps.describe(late), shows_stack=self.rank in late)
            before = now

    def tell(self, error: BaseException) -> None:
        """Tell the other ranks why this one fails, once the threads have ended."""
        try:
            self.words.say(error)
        except RuntimeError:  # whoever holds the store has ended
            self.answered = None


def _give_up(silent: list[int], rank: int, timeout_seconds: float) -> None:
    """Name the missing ranks and end this process; the launcher then ends the others, which may name them as well."""
    names = ", ".join(map(str, silent))
    _end(f"rank {names} has not answered rank {rank} for {timeout_seconds:g} s (engine.timeout_seconds)")


def _end(problem: str, shows_stack: bool = False) -> None:
    """Report in one line why the run ends, behind the stacks of this process if it is to blame, and end it."""
    if shows_stack:
        faulthandler.dump_traceback(2)  # standard error, also if Python has given sys.stderr to somebody else
    sys.stderr.write(f"error: {problem}; the run ends, and the same command continues from the last checkpoint\n")
    sys.stderr.flush()
    os._exit(1)
