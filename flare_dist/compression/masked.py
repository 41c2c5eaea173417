"""Payloads of sparse models: only what is active in a client's mask travels, as if the model had no other weights.

If both sides hold the mask it costs nothing. If the client has moved it since, the payload begins with what has
changed, the removed among those that were active and the grown among those that were not:

    | nbytes int32 | removed int32 | grown int32 | removed positions | grown positions | payload of what is active now |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from flare_dist.compression.index_codecs import check_indices, index_codec
from flare_dist.compression.packing import Packing
from flare_dist.compression.payload import MOST_ENTRIES, WORD, Masked, Sparse, check_positions
from flare_dist.layout import Entry, ParameterLayout

HEADER = 3 * WORD


def active_layout(layout: ParameterLayout, mask: Tensor) -> ParameterLayout:
    """Lay out the active entries, one after another; a tensor that is active throughout keeps its shape."""
    entries = []
    offset = 0
    for entry in layout.entries:
        count = int(mask[entry.offset : entry.end].count_nonzero())
        entries.append(Entry(entry.name, entry.shape if count == entry.numel else (count,), offset))
        offset += count
    return ParameterLayout(tuple(entries))


def positions_nbytes(numel: int, count: int) -> int:
    """Count the bytes of `count` positions among `numel` by the cheapest index codec."""
    return index_codec("auto", numel, count).nbytes(numel, count) if count else 0


def change_nbytes(before: int, outside: int, removed: int, grown: int) -> int:
    """Count the bytes of a change of a mask that had `before` active entries and `outside` others."""
    return positions_nbytes(before, removed) + positions_nbytes(outside, grown)


@dataclass(frozen=True, eq=False)
class MaskedEncoding:
    """The encoding of a client's payloads in a round.

    `mask`, bool [total], is what both sides hold before; `most_removed` entries at most leave it and `most_grown` enter
    it while the client trains (both 0: it stays). If `is_common`, the whole cohort has it and keeps it, so that dense
    payloads can be summed before the wire. `packing_of` gives the packing of what is active in a mask.
    """

    mask: Tensor
    packing_of: Callable[[Tensor], Packing]
    most_removed: int = 0
    most_grown: int = 0
    is_common: bool = False

    def __post_init__(self) -> None:
        check_positions(self.mask.numel(), "one sparse model")

    @property
    def moves(self) -> bool:
        return self.most_removed > 0 or self.most_grown > 0

    @cached_property
    def active(self) -> Tensor:
        """Return the ascending int64 positions of the active entries."""
        return self.mask.nonzero().squeeze(1)

    @cached_property
    def packing(self) -> Packing:
        return self.packing_of(self.mask)

    def active_in(self, mask: Tensor) -> Tensor:
        return mask.nonzero().squeeze(1) if self.moves else self.active

    def wrap(self, payload: Sparse, mask: Tensor) -> Masked:
        """Put the change of the mask before a payload of the active entries, if the mask may have moved."""
        change = self._encode(mask) if self.moves else payload.data[:0]
        nbytes = torch.tensor([WORD + change.numel() + payload.data.numel()], dtype=torch.int32)
        head = [nbytes.view(torch.uint8).to(change.device), change] if self.moves else []
        return Masked(
            self.active_in(mask)[payload.indices].int(),
            payload.values,
            torch.cat([*head, payload.data]),
            mask,
            sum(part.numel() for part in head),
        )

    def length(self, data: Tensor, kept: int) -> int:
        """Return the length of the payload of `kept` entries at the front of `data`."""
        if not self.moves:
            return self.packing.nbytes(kept)
        if data.numel() < HEADER:
            raise ValueError(f"{data.numel()} bytes have no room for the change of a mask")
        nbytes = int(data[:WORD].clone().view(torch.int32))
        if nbytes < HEADER:
            raise ValueError(f"a payload behind the change of a mask cannot have {nbytes} bytes")
        return nbytes

    def unpack(self, data: Tensor, kept: int) -> Masked:
        """Decode the payload in `data`, whose positions are not checked; waits for a GPU if the mask moves."""
        return self._unpack(data, kept, Packing.unpack)

    def unpack_checked(self, data: Tensor, kept: int) -> Masked:
        """Decode the payload in `data`; waits for a GPU. Raises ValueError if it holds none."""
        return self._unpack(data, kept, Packing.unpack_checked)

    def _unpack(self, data: Tensor, kept: int, unpack: Callable[[Packing, Tensor, int], Sparse]) -> Masked:
        if self.moves:
            mask, used = self._decode(data)
            payload = unpack(self.packing_of(mask), data[used:], kept)
        else:
            mask = self.mask
            used = 0
            payload = unpack(self.packing, data, kept)
        active = self.active_in(mask)
        return Masked(active[payload.indices].int(), payload.values, data, mask, used)

    def most_nbytes(self, most_payload: int) -> int:
        """Bound a payload whose active entries take at most `most_payload` bytes.

        Raises ValueError if it could be longer than an int32 length.
        """
        if not self.moves:
            return most_payload
        before = self.active.numel()
        change = change_nbytes(before, self.mask.numel() - before, self.most_removed, self.most_grown)
        most = HEADER + change + 2 * WORD + most_payload  # fewer positions may take a byte or two more, being rounded
        if most > MOST_ENTRIES:
            raise ValueError(
                f"compression.density: a payload takes at most {MOST_ENTRIES:,} bytes, got up to {most:,}; send less"
            )
        return most

    def _encode(self, mask: Tensor) -> Tensor:
        """Encode the counts of what was removed and of what has grown, and their positions."""
        removed = mask[self.active].logical_not_().nonzero().squeeze(1)
        grown = (mask & ~self.mask).nonzero().squeeze(1)
        grown = grown - torch.searchsorted(self.active, grown)  # its place among those that were not active
        assert removed.numel() <= self.most_removed, "a mask lost too much"
        assert grown.numel() <= self.most_grown, "a mask gained too much"
        counts = torch.tensor([removed.numel(), grown.numel()], dtype=torch.int32)
        parts = [counts.view(torch.uint8).to(mask.device)]
        for positions, numel in ((removed, self.active.numel()), (grown, mask.numel() - self.active.numel())):
            if positions.numel():
                parts.append(index_codec("auto", numel, positions.numel()).encode(positions, numel))
        return torch.cat(parts)

    def _decode(self, data: Tensor) -> tuple[Tensor, int]:
        """Decode the mask after the change at the front of `data`; also return how many bytes the change takes."""
        self.length(data, 0)
        before = self.active.numel()
        removed, grown = data[WORD:HEADER].clone().view(torch.int32).tolist()
        if not (0 <= removed <= self.most_removed and 0 <= grown <= self.most_grown):
            raise ValueError(f"a mask cannot lose {removed} and gain {grown} entries")
        mask = self.mask.clone()
        used = HEADER
        for count, numel, value in ((removed, before, False), (grown, mask.numel() - before, True)):
            nbytes = positions_nbytes(numel, count)
            if used + nbytes > data.numel():
                raise ValueError(f"a payload of {data.numel()} bytes has no room for the change of its mask")
            if count:
                places = index_codec("auto", numel, count).decode(data[used : used + nbytes], numel, count)
                check_indices(places, numel)
                mask[self._grown_at(places) if value else self.active[places]] = value
            used += nbytes
        return mask, used

    def _grown_at(self, places: Tensor) -> Tensor:
        """Return the positions of these places among the entries that are not active."""
        inactive_before = self.active - torch.arange(self.active.numel(), device=self.active.device)
        return places + torch.searchsorted(inactive_before, places, right=True)
