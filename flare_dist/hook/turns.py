"""Fragments of outer steps on their way, each behind a word of the step that its replica is in (call_order.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from flare_dist.comm.collectives import ProcessGroup, rank_and_size
from flare_dist.comm.traffic import all_gather_wire
from flare_dist.hook.call_order import BEGINNING, CallOrder, number_of, place_of
from flare_dist.hook.fragment import Fragment


class Turns:
    """Sends fragments and waits for them; raises RuntimeError on all replicas if they are in different steps.

    On a GPU that is known a step late.
    """

    def __init__(self, fragments: Sequence[Fragment], group: ProcessGroup | None) -> None:
        self._fragments = fragments
        self._size = rank_and_size(group)[1]
        self._order = CallOrder(group, "outer: another replica has not come", elsewhere)
        self._meetings: dict[int, Callable[[], None]] = {}  # by number of the fragment behind it

    def send(self, number: int, step: int) -> None:
        """Begin to exchange what this replica has moved of a fragment."""
        self._meetings[number] = self._meet(number, step)
        self._fragments[number].send()

    def wait(self, number: int) -> None:
        """Wait for what was sent."""
        meeting = self._meetings.pop(number, None)  # none if it had arrived when it was saved
        if meeting is not None:
            meeting()
            self._order.end_step()
        self._fragments[number].wait()

    def end(self, step: int) -> None:
        """Meet the other replicas at their end."""
        self._meet(0, step)()
        self._order.end_step()

    def look(self) -> None:
        """Raise RuntimeError if a GPU has told by now that replicas are in different steps."""
        self._order.look()

    def _meet(self, number: int, step: int) -> Callable[[], None]:
        fragment = self._fragments[number]
        place = torch.full((1,), place_of(step), device=fragment.device)
        fragment.exchange.count(all_gather_wire(self._size, place.nbytes), place.nbytes, 0)
        return self._order.start(place)


def elsewhere(places: Sequence[int]) -> str:
    """Write the error of replicas that are in different steps."""
    found = ", ".join(f"replica {replica} in {_told(place)}" for replica, place in enumerate(places))
    return (
        f"outer: all replicas must be in the same step, got {found or 'different ones'}; let all of them begin, load "
        "and end together, and give each as many batches"
    )


def _told(place: int) -> str:
    if place == BEGINNING:
        return "outer()"
    return f"step {number_of(place)}" if place < BEGINNING else "another call"
