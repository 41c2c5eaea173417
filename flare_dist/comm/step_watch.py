"""Find the ranks whose steps have stopped while others wait for them, from what all tell of their progress."""

from __future__ import annotations

import time
from collections.abc import Mapping

from flare_dist.comm.last_words import Store
from flare_dist.comm.rank_progress import RankProgress


class StepWatch:
    """One rank's view of how far all have come, itself among them, and since when each has not advanced."""

    def __init__(self, store: Store, rank: int, size: int, progress: RankProgress, seconds: float | None) -> None:
        self.store = store
        self.rank = rank
        self.progress = progress
        self.seconds = seconds
        self._told = {"arrivals": 0, "signs": 0}
        self._reached = dict.fromkeys(range(size), (0, 0))  # (arrivals, signs)
        self._since = dict.fromkeys(range(size), time.monotonic())
        self._living = list(range(size))
        self._looked = time.monotonic()

    def exchange(self, alive: Mapping[int, int]) -> None:
        """Tell the others how far this rank has come, and read it of those whose count `alive` is above 0."""
        if self.seconds is None:
            return
        living = sorted([self.rank, *(other for other, count in alive.items() if count > 0)])
        for kind, number in zip(("arrivals", "signs"), self.progress.read()):
            self.store.add(f"{kind}/{self.rank}", number - self._told[kind])
            self._told[kind] = number
        for rank in living:
            reached = (self.store.add(f"arrivals/{rank}", 0), self.store.add(f"signs/{rank}", 0))
            if reached != self._reached[rank] or rank not in self._living:
                self._reached[rank] = reached
                self._since[rank] = time.monotonic()
        self._living = living
        self._looked = time.monotonic()

    def late(self) -> list[int]:
        """Return the ranks for which the others wait and that had not advanced for too long at the last exchange."""
        if self.seconds is None:
            return []
        living = self._living
        fewest = min(self._reached[rank][0] for rank in living)
        behind = [rank for rank in living if self._reached[rank][0] == fewest]
        return [rank for rank in behind if self._looked - self._since[rank] > self.seconds]

    def begin_again(self, now: float) -> None:
        """Count from now on: it was this process that did not look."""
        self._since = dict.fromkeys(self._since, now)

    def describe(self, late: list[int]) -> str:
        """Say in words who is late."""
        limit = f"for {self.seconds:g} s (engine.step_timeout_seconds)"
        if len(late) == len(self._living) > 1:
            return f"no rank has advanced {limit}: all wait in the same exchange"
        names = ", ".join(map(str, late))
        return f"rank {names} has not advanced {limit}, and the others wait for it"
