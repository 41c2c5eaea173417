"""The reason for which a rank has failed, told to the others over the store: each then names it in its own log.

A rank that fails posts it and waits until the others know, for once it has ended the launcher ends them as well.
"""

from __future__ import annotations

import sys
import time
from typing import Protocol

from flare_dist.errors import ReportedError, reason

SECONDS_TO_BE_HEARD = 3.0  # the other ranks listen every half second, and some may be gone
LENGTH = 1000  # of what is said


class Store(Protocol):
    """The part of a torch.distributed Store that ranks tell each other by."""

    def add(self, key: str, amount: int, /) -> int:
        """Increase the counter of this key, and return it."""

    def set(self, key: str, value: str, /) -> None:
        """Set a key."""

    def get(self, key: str, /) -> bytes:
        """Return what a key is set to, once it is."""


class PeerFailedError(ReportedError):
    """Raised if this rank cannot go on because another has failed, which `hear` has reported."""


class LastWords:
    """What ranks say when they fail. One thread at a time may use it."""

    def __init__(self, store: Store, rank: int, size: int) -> None:
        self.store = store
        self.rank = rank
        self.size = size
        self.heard = ""  # of the first rank that failed
        self._knows = False

    def hear(self) -> str:
        """Return why another rank has failed, in one line; empty if none has. Reports it the first time."""
        if not self.heard and self.store.add("failures", 0) > 0:
            self.heard = self.store.get("failure/1").decode(errors="replace")
            self.know()
            sys.stderr.write(f"error: {self.heard}\n")
            sys.stderr.flush()
        return self.heard

    def say(self, error: BaseException) -> None:
        """Tell the others that this rank has failed, and wait until they know."""
        number = self.store.add("failures_begun", 1)
        words = reason(error) if isinstance(error, Exception) else type(error).__name__
        self.store.set(f"failure/{number}", f"rank {self.rank} has failed: {words}"[:LENGTH])
        self.store.add("failures", 1)
        self.know()
        end = time.monotonic() + SECONDS_TO_BE_HEARD
        while self.store.add("know", 0) < self.size and time.monotonic() < end:
            time.sleep(0.02)

    def know(self) -> None:
        """Let nobody wait for this rank any longer: it knows, or it leaves."""
        if not self._knows:
            self._knows = True
            self.store.add("know", 1)
