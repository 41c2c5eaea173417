"""Signs of life between the ranks, so that one that hangs ends the run and is named.

A rank may wait long for another in a collective, for it may be training; what it must not do is wait for one that is
stopped. So each rank counts up in the launcher's store from a thread of its own and looks at the others' counts; a
second thread looks at the clock, because a store whose process is stopped never answers. Deaths need no watching: the
launcher and the broken connections report them at once.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

LEFT = -(2**40)  # added to the count of a rank that has left


class Counters(Protocol):
    """The part of a torch.distributed Store that is used."""

    def add(self, key: str, amount: int, /) -> int:
        """Increase the counter of this key, and return it."""


@contextmanager
def heartbeat(store: Counters, rank: int, size: int, timeout_seconds: float) -> Iterator[None]:
    """End this process if another rank gives no sign of life for `timeout_seconds` while the block runs.

    A rank is watched from its first sign to the end of its block; `store` is used from another thread.
    """
    watch = _Watch(store, rank, size, timeout_seconds)
    threads = [threading.Thread(target=work, daemon=True) for work in (watch.exchange_signs, watch.look_at_the_clock)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        watch.done.set()
        for thread in threads:
            thread.join(2.0)  # so that the others hear that this rank has left


class _Watch:
    """One rank's view of the others: when each has last changed its count, on this process's monotonic clock."""

    def __init__(self, store: Counters, rank: int, size: int, timeout_seconds: float) -> None:
        self.store = store
        self.rank = rank
        self.timeout_seconds = timeout_seconds
        self.interval = min(5.0, timeout_seconds / 10)
        self.done = threading.Event()
        self.counts = dict.fromkeys((other for other in range(size) if other != rank), 0)
        self.seen = dict.fromkeys(self.counts, time.monotonic())
        self.answered: float | None = time.monotonic()  # by the store; None once it has ended

    def exchange_signs(self) -> None:
        """Count up, and note whose count has changed.

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
                self.answered = time.monotonic()
                if self.done.wait(self.interval):
                    break
            self.store.add(f"alive/{self.rank}", LEFT)
        except RuntimeError:
            self.answered = None  # whoever holds the store has ended, which others will report

    def look_at_the_clock(self) -> None:
        """End the process where somebody's time is over."""
        before = time.monotonic()
        while not self.done.wait(self.interval):
            now = time.monotonic()
            answered = self.answered
            if answered is None:
                return
            if now - before > 3 * self.interval + 1:  # it was this process that did not run
                self.seen = dict.fromkeys(self.seen, now)
                self.answered = now
            elif now - answered > self.timeout_seconds:
                _give_up([0], self.rank, self.timeout_seconds)  # without a launcher's agent rank 0 holds the store
            else:
                silent = [other for other, last in self.seen.items() if now - last > self.timeout_seconds]
                if silent:
                    _give_up(silent, self.rank, self.timeout_seconds)
            before = now


def _give_up(silent: list[int], rank: int, timeout_seconds: float) -> None:
    """Name the missing ranks and end this process; the launcher then ends the others, which may name them as well."""
    names = ", ".join(map(str, silent))
    sys.stderr.write(
        f"error: rank {names} has not answered rank {rank} for {timeout_seconds:g} s (engine.timeout_seconds); "
        "the run ends, and the same command continues from the last checkpoint\n"
    )
    sys.stderr.flush()
    os._exit(1)
