"""The prunable layers of a model, as one rank of a host sees them.

A host of several ranks decides over a layer, how many weights it keeps and which, as one rank would that had the whole
of it: counts are added up over the ranks, values are gathered one layer at a time, and each rank keeps its own part of
what follows. Its part is consecutive in the flattened layer, and the parts of the ranks follow one another. All ranks
of a host call together. With one rank nothing moves and nothing is copied.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from flare_dist.cuts import Cut, ModelShard
from flare_dist.layout import Entry


class Members(Protocol):
    """The ranks of a host and their collectives: comm/host.py."""

    shard: int  # this rank's number among them
    shards: int

    def sum_(self, tensor: Tensor) -> Tensor: ...

    def sums(self, numbers: list[int]) -> list[int]: ...

    def all_true(self, condition: bool) -> bool: ...

    def lengths(self, own: int) -> list[int]: ...

    def gather(self, vector: Tensor, lengths: list[int] | None = None) -> Tensor: ...


@dataclass(frozen=True)
class Layers:
    """The prunable layers: `whole` as the model has them, and the parts of them that this rank holds.

    `own` are the places of the parts in this rank's flat vectors, `starts` those in the flattened layers.
    """

    whole: tuple[Entry, ...]
    own: tuple[Entry, ...]
    starts: tuple[int, ...]
    host: Members

    @classmethod
    def of(cls, whole: Iterable[Entry], host: Members, shard: ModelShard | None = None) -> Layers:
        """Find this rank's parts of the layers; all of each without a `shard`."""
        whole = tuple(whole)
        if shard is None:
            return cls(whole, whole, (0,) * len(whole), host)
        offsets = itertools.accumulate((cut.numel for cut in shard.cuts), initial=0)
        held = {
            entry.name: (Entry(entry.name, cut.own_shape, offset), _start(cut))
            for entry, cut, offset in zip(shard.whole.entries, shard.cuts, offsets)
        }
        own, starts = zip(*(held[entry.name] for entry in whole))
        return cls(whole, own, starts, host)

    def choose(self, own: Tensor, choice: Callable[[Tensor], Tensor]) -> Tensor:
        """Choose among the values of all ranks, of which this one has `own`; returns the places in `own` chosen.

        `choice` is given the values of all ranks one after another, and returns int64 places in them.
        """
        lengths = self.host.lengths(own.numel())
        return self._kept(choice(self.host.gather(own, lengths)), self._first(lengths), own.numel())

    def places(self, own: int, choice: Callable[[int], Tensor]) -> Tensor:
        """Choose among places of which this rank has so many, and the ranks before it those in front of them.

        `choice` is given how many there are on all ranks.
        """
        lengths = self.host.lengths(own)
        return self._kept(choice(sum(lengths)), self._first(lengths), own)

    def own_places(self, layer: int, places: Tensor) -> Tensor:
        """Keep of places in a flattened layer, given by its number, those that this rank holds, as it counts them."""
        return self._kept(places, self.starts[layer], self.own[layer].numel)

    def own_part(self, layer: int, values: Tensor) -> Tensor:
        """Return a view of this rank's part of the flattened layer of this number."""
        return values.narrow(0, self.starts[layer], self.own[layer].numel)

    def _first(self, lengths: list[int]) -> int:
        """Return where this rank begins among those that have so many each."""
        return sum(lengths[: self.host.shard])

    def _kept(self, places: Tensor, first: int, numel: int) -> Tensor:
        if self.host.shards == 1:
            return places
        return places[(places >= first) & (places < first + numel)] - first

    def kth_largest(self, own: Tensor, k: int) -> Tensor:
        """Return the k-th largest of the float32 values of all ranks, of which this one has `own`, as a scalar."""
        if self.host.shards == 1:
            return own.topk(k).values[-1]
        # No rank has all values: their bits are in the order of the values, and each sum halves what is in question.
        keys = _ordered(own)
        low = -(2**31)
        high = 2**31 - 1
        while low < high:
            middle = (low + high + 1) // 2
            if self.host.sums([int((keys >= middle).count_nonzero())])[0] >= k:
                low = middle
            else:
                high = middle - 1
        return _ordered(torch.tensor(low, dtype=torch.int32).view(torch.float32)).view(torch.float32).to(own.device)


def _start(cut: Cut) -> int:
    """Return where a slice, of leading rows or flat, begins in the flattened tensor."""
    rows = cut.stop - cut.start
    return cut.start * (cut.numel // rows) if rows else 0


def _ordered(values: Tensor) -> Tensor:
    """Return the bits of float32 values as int32 in the order of the values; so it is undone as well."""
    bits = values.view(torch.int32)
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
