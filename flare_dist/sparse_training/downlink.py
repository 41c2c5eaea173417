"""The cost of sending clients the consensus mask: it is counted, for every rank holds the mask itself.

A client gets the changes that it has missed, or the whole mask if that is less.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from flare_dist.compression.masked import change_nbytes


def change_between(before: Tensor, after: Tensor) -> int:
    """Count the bytes of the change of a mask, bool [total], to another."""
    removed, grown = (int(moved.count_nonzero()) for moved in (before & ~after, after & ~before))
    active = int(before.count_nonzero())
    return change_nbytes(active, len(before) - active, removed, grown)


class MaskDownlink:
    """The bytes of each change of the consensus, on all ranks of a host together, and which of them each client has."""

    def __init__(self) -> None:
        self._changes: list[int] = []  # the first is the first mask
        self._seen: dict[int, int] = {}  # client -> how many changes it has

    @property
    def has_begun(self) -> bool:
        return bool(self._changes)

    def begin(self, nbytes: int) -> None:
        """Count the first mask, which takes `nbytes`."""
        self._changes = [nbytes]

    def change(self, nbytes: int) -> None:
        """Count the change of the consensus to another, which takes `nbytes`."""
        self._changes.append(nbytes)

    def nbytes_to(self, client: int, whole: int) -> int:
        """Count what this client has missed, at most the bytes of the `whole` mask, which it holds from then on."""
        missed = sum(self._changes[self._seen.get(client, 0) :])
        self._seen[client] = len(self._changes)
        return min(whole, missed)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint saves; references, not copies."""
        return {"changes": self._changes, "seen": self._seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._changes = list(state["changes"])
        self._seen = dict(state["seen"])
