"""Compression of sparse models: only what is active in a client's mask travels, as if the model had no other weights.

The active weights are sent in float32 as they are, or the compressor selects among them. If both sides hold the mask it
costs nothing. If the client has moved it since, the payload begins with what has changed, the removed among those that
were active and the grown among those that were not:

    | nbytes int32 | removed int32 | grown int32 | removed positions | grown positions | payload of what is active now |
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from flare_dist.compression.compressor import Compressor, Plan, density_in, plan
from flare_dist.compression.error_feedback import State
from flare_dist.compression.index_codecs import ALL, check_indices, positions_nbytes, smallest
from flare_dist.compression.packing import Packing
from flare_dist.compression.payload import MOST_ENTRIES, WORD, Dense, Masked, Payload, Sparse

HEADER = 3 * WORD


def change_nbytes(before: int, outside: int, removed: int, grown: int) -> int:
    """Count the bytes of a change of a mask that had `before` active entries and `outside` others."""
    return positions_nbytes(before, removed) + positions_nbytes(outside, grown)


class Limits(NamedTuple):
    """The most by which a mask changes while its client trains."""

    removed: int
    grown: int
    active: int  # entries that are active afterwards


class MaskedEncoding:
    """The encoding of a client's payloads in a round, and the compression before it.

    `mask`, bool [total], is what both sides hold before; without `limits` it stays. If `is_common`, the whole cohort
    has it and keeps it, so that dense payloads can be summed before the wire.
    """

    def __init__(
        self,
        compressor: Compressor,
        round_: int,
        mask: Tensor,
        limits: Limits | None = None,
        is_common: bool = False,
    ) -> None:
        self.compressor = compressor
        self.round = round_
        self.mask = mask
        self.limits = limits
        self.is_common = is_common
        self.active = mask.nonzero().squeeze(1)  # int64 positions, ascending

    def plan_within(self, mask: Tensor) -> Plan:
        """Plan what is selected of the active entries of `mask`."""
        config = self.compressor.config
        layout = self.compressor.layout.within(mask)
        return plan(config, layout, density_in(config, self.round), self.compressor.device)

    @cached_property
    def plan(self) -> Plan:
        """Plan what is selected of a mask that stays."""
        return self.plan_within(self.mask)

    def compress(self, client: int, model_delta: Tensor, memory: State, mask: Tensor) -> Payload:
        """Compress the active entries of `model_delta` (float32 [total], finite); updates `memory` in place.

        `mask` is what the client's mask has become in training, and `memory` is zero outside it.
        """
        active = mask.nonzero().squeeze(1) if self.limits else self.active
        delta = model_delta[active]
        if self.compressor.is_dense and self.is_common:
            return Dense(delta)
        if self.compressor.is_dense:
            payload = Sparse(active.int(), delta, delta.view(torch.uint8))
        else:
            payload = self._select(client, delta, memory, mask, active)
        change = self._change(mask, payload.data.numel()) if self.limits else payload.data[:0]
        data = torch.cat([change, payload.data])
        return Masked(payload.indices, payload.values, data, mask, change.numel())

    def _select(self, client: int, delta: Tensor, memory: State, mask: Tensor, active: Tensor) -> Sparse:
        """Select of the `active` entries of `mask`, with error feedback around it; updates `memory` in place."""
        kept = {name: memory[name][active] for name in self.compressor.state_names}
        within = self.plan_within(mask) if self.limits else self.plan
        payload = self.compressor.select(within, self.round, client, delta, kept)
        for name, vector in kept.items():
            memory[name].index_copy_(0, active, vector)
        return replace(payload, indices=active[payload.indices].int())

    def _change(self, mask: Tensor, payload_nbytes: int) -> Tensor:
        """Encode what has changed in the mask, before a payload of so many bytes."""
        assert self.limits, "a mask that stays has no change"
        removed = mask[self.active].logical_not_().nonzero().squeeze(1)
        grown = (mask & ~self.mask).nonzero().squeeze(1)
        grown = grown - torch.searchsorted(self.active, grown)  # its place among those that were not active
        assert removed.numel() <= self.limits.removed, "a mask lost too much"
        assert grown.numel() <= self.limits.grown, "a mask gained too much"
        before = self.active.numel()
        parts = []
        for positions, numel in ((removed, before), (grown, mask.numel() - before)):
            if positions.numel():
                parts.append(smallest(ALL, numel, positions.numel()).encode(positions, numel))
        nbytes = HEADER + sum(part.numel() for part in parts) + payload_nbytes
        head = torch.tensor([nbytes, removed.numel(), grown.numel()], dtype=torch.int32)
        return torch.cat([head.view(torch.uint8).to(mask.device), *parts])

    def length(self, data: Tensor, kept: int) -> int:
        """Return the length of the payload of `kept` entries at the front of `data`."""
        if not self.limits:
            return WORD * self.active.numel() if self.compressor.is_dense else self.plan.packing.sizes(kept).nbytes
        if data.numel() < HEADER:
            raise ValueError(f"{data.numel()} bytes have no room for the change of a mask")
        nbytes = int(data[:WORD].clone().view(torch.int32))
        if nbytes < HEADER:
            raise ValueError(f"a payload behind the change of a mask cannot have {nbytes} bytes")
        return nbytes

    def unpack_checked(self, data: Tensor, kept: int) -> Masked:
        """Decode the payload in `data`; waits for a GPU. Raises ValueError if it holds none."""
        mask, used = self._decode(data) if self.limits else (self.mask, 0)
        active = mask.nonzero().squeeze(1) if self.limits else self.active
        if self.compressor.is_dense:
            values = data[used:].clone()  # aligned, which a slice may not be
            if not values.numel() == WORD * active.numel() == WORD * kept:
                raise ValueError(f"{values.numel()} bytes are no payload of {kept} of {active.numel()} active weights")
            return Masked(active.int(), values.view(torch.float32), data, mask, used)
        within = self.plan_within(mask) if self.limits else self.plan
        payload = within.packing.unpack_checked(data[used:], kept)
        return Masked(active[payload.indices].int(), payload.values, data, mask, used)

    unpack = unpack_checked  # rounds do not know the number of entries beforehand, and check what they read

    def _decode(self, data: Tensor) -> tuple[Tensor, int]:
        """Decode the mask after the change at the front of `data`; also return how many bytes the change takes."""
        assert self.limits, "a mask that stays has no change"
        self.length(data, 0)
        before = self.active.numel()
        removed, grown = data[WORD:HEADER].clone().view(torch.int32).tolist()
        if not (0 <= removed <= self.limits.removed and 0 <= grown <= self.limits.grown):
            raise ValueError(f"a mask cannot lose {removed} and gain {grown} entries")
        mask = self.mask.clone()
        used = HEADER
        for count, numel, value in ((removed, before, False), (grown, mask.numel() - before, True)):
            nbytes = positions_nbytes(numel, count)
            if used + nbytes > data.numel():
                raise ValueError(f"a payload of {data.numel()} bytes has no room for the change of its mask")
            if count:
                places = smallest(ALL, numel, count).decode(data[used : used + nbytes], numel, count)
                check_indices(places, numel)
                if value:  # places among the entries that were not active
                    inactive_before = self.active - torch.arange(before, device=mask.device)
                    places = places + torch.searchsorted(inactive_before, places, right=True)
                mask[places if value else self.active[places]] = value
            used += nbytes
        return mask, used

    def most_nbytes(self) -> int:
        """Bound the payload, wherever the active entries lie.

        Raises ValueError if it could be longer than an int32 length.
        """
        active = self.limits.active if self.limits else self.active.numel()
        most = WORD * active if self.compressor.is_dense else self._most_selected(active)
        most += WORD  # fewer positions may take a byte or two more, being rounded
        if not self.limits:
            return most
        before = self.active.numel()
        change = change_nbytes(before, self.mask.numel() - before, self.limits.removed, self.limits.grown)
        most += HEADER + change + 2 * WORD  # and so may those of the change
        if most > MOST_ENTRIES:
            raise ValueError(
                f"compression.density: a payload takes at most {MOST_ENTRIES:,} bytes, got up to {most:,}; send less"
            )
        return most

    def _most_selected(self, active: int) -> int:
        """Bound the bytes of what is selected of so many active entries."""
        config = self.compressor.config
        tensors = len(self.compressor.layout.entries)
        kept = active
        if not config.sends_everything and config.sparsifier != "auto":
            # Each tensor rounds by itself, may be sent whole if it is short, and its blocks round as well.
            blocks = active // config.block if config.scope == "block" else 0
            slack = tensors * (2 + config.dense_below) + 2 * blocks
            kept = min(active, int(active * density_in(config, self.round)) + slack)
        whole = torch.arange(active if config.sends_everything else 0)
        return Packing(config.codecs, active, whole, torch.zeros(tensors)).sizes(kept).nbytes
