"""How far a rank has come, which its heartbeat tells the others: a process that lives may have stopped to train.

Ranks arrive at the same exchanges in the same order. Of ranks that do not advance, those that have arrived at fewest of
them are what the others wait for. On a GPU the host runs ahead: a mark counts once the GPU has got there.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol


class Event(Protocol):
    """The part of a torch.cuda.Event that is used."""

    def query(self) -> bool:
        """Tell whether the GPU has got there."""


class RankProgress:
    """Count this rank's exchanges, and its signs: steps and batches of evaluations. Any thread may read it.

    Outside of `watched` blocks, and inside of `busy` ones within them, the rank counts as advancing: it may be loading
    data, compiling or saving.
    """

    def __init__(self, mark: Callable[[], Event] | None = None) -> None:
        """Count a mark when its event is over; `mark` records one behind what the device has been given so far."""
        self._mark = mark
        self._pending: deque[tuple[bool, Event]] = deque()  # whether it is an arrival
        self._arrivals = 0
        self._signs = 0
        self._busy = 1
        self._is_compiling = False
        self._compiler: Any = None  # torch.compile's list of whom it calls when it begins and ends

    def advance(self) -> None:
        """Note a step, or a part of anything that takes longer."""
        self._note(False)

    def arrive(self) -> None:
        """Note that this rank is about to exchange something with all others, for whom it may have to wait."""
        self._note(True)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Let this rank count as advancing as long as the block runs."""
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Let this rank count as advancing only by its marks."""
        self._notice_compiling()
        self._note(False)
        self._busy -= 1
        try:
            yield
        finally:
            self._busy += 1

    def read(self) -> tuple[int, int]:
        """Return how many exchanges this rank has arrived at, and the number of its signs, which grows if it is busy.

        One thread reads.
        """
        with suppress(RuntimeError):  # of a GPU that has failed, which the thread that uses it reports
            while self._pending and self._pending[0][1].query():
                self._count(self._pending.popleft()[0])
        if self._busy > 0 or self._is_compiling:
            self._signs += 1
        return self._arrivals, self._signs

    def close(self) -> None:
        """Let torch.compile forget this object."""
        if self._compiler:
            self._compiler.remove_start_callback(self._begin_compiling)
            self._compiler.remove_end_callback(self._end_compiling)
            self._compiler = None

    def _notice_compiling(self) -> None:
        """Ask torch.compile, if anything has imported it, to tell when it compiles, which may take minutes."""
        dynamo = sys.modules.get("torch._dynamo.callback")
        if dynamo and not self._compiler:
            self._compiler = dynamo.callback_handler
            self._compiler.register_start_callback(self._begin_compiling)
            self._compiler.register_end_callback(self._end_compiling)

    def _begin_compiling(self, *_: object) -> None:
        self._is_compiling = True

    def _end_compiling(self, *_: object) -> None:
        self._is_compiling = False

    def _note(self, is_arrival: bool) -> None:
        if self._mark is None:
            self._count(is_arrival)
        else:
            self._pending.append((is_arrival, self._mark()))

    def _count(self, is_arrival: bool) -> None:
        self._arrivals += is_arrival
        self._signs += 1
