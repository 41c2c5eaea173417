"""Compression of sparse models: a compressor is wrapped so that it sees the active entries alone."""

from __future__ import annotations

import torch
from torch import Tensor

from flare_dist.compression.compressor import Compressor
from flare_dist.compression.error_feedback import State
from flare_dist.compression.masked import MaskedEncoding, active_layout
from flare_dist.compression.packing import Packing
from flare_dist.compression.payload import Dense, Payload
from flare_dist.compression.plan import Plan, plan


class MaskedCompressor:
    """A compressor of what is active in a mask, bool [total]; the rest of the model is not there for it."""

    def __init__(self, whole: Compressor) -> None:
        self.whole = whole

    def plan_within(self, round_: int, mask: Tensor) -> Plan:
        """Return the plan of a round for the active entries of `mask`."""
        config = self.whole.config
        return plan(config, active_layout(self.whole.layout, mask), config.density_in(round_), self.whole.device)

    def most_nbytes_of(self, round_: int, active: int) -> int:
        """Bound the payload of a model with at most `active` active entries, wherever they lie."""
        config = self.whole.config
        tensors = len(self.whole.layout.entries)
        kept = active
        if not config.sends_everything and config.sparsifier != "auto":
            # Each tensor rounds by itself, may be sent whole if it is short, and its blocks round as well.
            blocks = active // config.block if config.scope == "block" else 0
            slack = tensors * (2 + config.dense_below) + 2 * blocks
            kept = min(active, int(active * config.density_in(round_)) + slack)
        whole = torch.arange(active if config.sends_everything else 0)
        return Packing(config, active, whole, torch.zeros(tensors)).most_nbytes(kept)

    def compress(
        self, round_: int, client: int, model_delta: Tensor, memory: State, encoding: MaskedEncoding, mask: Tensor
    ) -> Payload:
        """Compress the active entries of `model_delta` (float32 [total], finite); updates `memory` in place.

        `mask` is what the client's mask has become in training, and `memory` is zero outside it.
        """
        active = encoding.active_in(mask)
        delta = model_delta[active]
        if self.whole.is_dense and encoding.is_common:
            return Dense(delta)
        kept = {name: memory[name][active] for name in self.whole.state_names}
        payload = self.whole.select(self.plan_within(round_, mask), round_, client, delta, kept)
        for name, vector in kept.items():
            memory[name].index_copy_(0, active, vector)
        return encoding.wrap(payload, mask)
