"""Signs of life between the ranks, so that one that hangs ends the run and is named.

A rank may wait long for another in a collective, for it may be training; what it must not do is wait for one that is
stopped. So each rank counts up in the launcher's store from a thread of its own and watches the others' counts. Deaths
need no watching: the launcher and the broken connections tell of them at once.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Counters(Protocol):
    """What is used of a torch.distributed Store."""

    def add(self, key: str, amount: int, /) -> int:
        """The counter of this key, increased."""


@contextmanager
def heartbeat(store: Counters, rank: int, size: int, timeout_seconds: float) -> Iterator[None]:
    """Ends this process where another rank gives no sign of life for `timeout_seconds` while the block runs.

    A rank is watched from its first sign to the end of its block; `store` is used from another thread.
    """
    done = threading.Event()
    watch = threading.Thread(target=_watch, args=(store, rank, size, timeout_seconds, done), daemon=True)
    watch.start()
    try:
        yield
    finally:
        done.set()
        watch.join(2.0)  # so that the others hear that this rank has left


def _watch(store: Counters, rank: int, size: int, timeout_seconds: float, done: threading.Event) -> None:
    """Count up and look at the others ten times in `timeout_seconds`, at most once in five."""
    counts = dict.fromkeys((other for other in range(size) if other != rank), 0)
    changed = dict.fromkeys(counts, time.monotonic())
    while not done.wait(min(5.0, timeout_seconds / 10)):
        started = time.monotonic()
        try:
            store.add(f"alive/{rank}", 1)
            found = {other: store.add(f"alive/{other}", 0) for other in counts}
            left = {other for other in counts if store.add(f"left/{other}", 0)}
        except RuntimeError:
            # Who holds the store has ended, or is stopped itself: rank 0, where the launcher does not hold it.
            if time.monotonic() - started >= timeout_seconds and not done.is_set():
                _give_up([0], rank, timeout_seconds)
            return
        now = time.monotonic()
        for other, count in found.items():
            if count != counts[other] or not count or other in left:
                counts[other], changed[other] = count, now
        silent = [other for other, last in changed.items() if now - last > timeout_seconds]
        if silent:
            _give_up(silent, rank, timeout_seconds)
    try:
        store.add(f"left/{rank}", 1)
    except RuntimeError:
        return


def _give_up(silent: list[int], rank: int, timeout_seconds: float) -> None:
    """End this process; the first of the ranks that answer says why."""
    if rank == min(set(range(rank + 1)) - set(silent)):
        names = ", ".join(map(str, silent))
        sys.stderr.write(
            f"error: rank {names} has not answered for {timeout_seconds:g} s (engine.timeout_seconds): taken for hung, "
            "so the run ends; the same command continues from the last checkpoint\n"
        )
        sys.stderr.flush()
    os._exit(1)
