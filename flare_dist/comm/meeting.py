"""Wait for all ranks over the store: without a limit of time, which every collective has.

Rank 0 evaluates, saves and, in mode centralised, trains alone for as long as it takes, and the others must neither be
aborted meanwhile nor ask again and again. A rank that dies or stops is the heartbeat's to find (heartbeat.py).
"""

from __future__ import annotations

from datetime import timedelta

from flare_dist.comm.collectives import DistStoreError, Store

SLICE = timedelta(hours=1)  # of the waiting, for a store wants a limit


class Meetings:
    """The meetings of the ranks of a run, one after another. `store` is used by this thread alone."""

    def __init__(self, store: Store, size: int) -> None:
        self.store = store
        self.size = size
        self._held = 0

    def meet(self) -> None:
        """Return once all ranks have called it as often as this one."""
        number = self._held
        self._held += 1
        if self.store.add(f"met/{number}", 1) == self.size:
            self.store.set(f"all_met/{number}", "")
            if number:  # all that are here have left the meeting before
                self.store.delete_key(f"met/{number - 1}")
                self.store.delete_key(f"all_met/{number - 1}")
            return
        while True:
            try:
                self.store.wait([f"all_met/{number}"], SLICE)
            except DistStoreError:
                continue
            return
