"""One client's compression: error feedback around a sparsifier and the codecs, with this round's randomness."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from flare_dist.compression.config import CompressionConfig
from flare_dist.compression.error_feedback import State
from flare_dist.compression.packing import Packing
from flare_dist.compression.payload import Dense, Payload, Sparse
from flare_dist.compression.sparsifiers import SCOPES, SPARSIFIERS, Segment, select
from flare_dist.layout import Entry, ParameterLayout
from flare_dist.seeding import generator


class Plan(NamedTuple):
    """What is selected from at one density, and how it is written."""

    segments: list[Segment]  # those that are sent whole are not among them
    packing: Packing

    @property
    def max_kept(self) -> int:
        """The most entries that one client can send."""
        return self.packing.whole.numel() + sum(segment.k * segment.blocks for segment in self.segments)


class Compressor:
    """Turns model deltas of one layout into payloads.

    `state_names` are the vectors that a client remembers, none where everything is sent; where `estimated`, payloads
    are changes of an estimate that the server keeps as well.
    """

    def __init__(
        self, config: CompressionConfig, layout: ParameterLayout, seed: int, device: torch.device | None = None
    ) -> None:
        self.config = config
        self.layout = layout
        self.seed = seed
        self.device = device or torch.device("cpu")
        self.is_dense = config.is_dense  # a dense delta is sent as it is
        densities = () if self.is_dense else {*config.warmup, config.density}
        self._plans = {d: plan(config, layout, d, self.device) for d in densities}
        self.state_names, self.rule, self.estimated = config.feedback

    def plan(self, round_: int) -> Plan:
        """What is selected from in a round, and how it is written; not of dense updates."""
        return self._plans[self.config.density_in(round_)]

    @property
    def final_plan(self) -> Plan:
        """That of the density which a warm-up leads to."""
        return self._plans[self.config.density]

    def compress(self, round_: int, client: int, model_delta: Tensor, memory: State) -> Payload:
        """Compress `model_delta` (float32 [total], finite); updates the client's `memory` in place.

        A dense payload is the delta itself, not a copy.
        """
        if self.is_dense:
            return Dense(model_delta)
        return self.select(self.plan(round_), round_, client, model_delta, memory)

    def select(self, plan_: Plan, round_: int, client: int, model_delta: Tensor, memory: State) -> Sparse:
        """Select by a plan, with error feedback around it; updates `memory` in place."""
        draws = generator(self.seed, "sparsifier", round_, client)
        rounding = None if self.state_names else generator(self.seed, "rounding", round_, client)
        segments, packing = plan_

        def sparsify(vector: Tensor) -> Sparse:
            chosen = packing.whole[:0]
            if segments:
                chosen = select(vector, segments, SPARSIFIERS[self.config.sparsifier], draws, self.config.threshold)
            indices = packing.indices(chosen)
            uniform = None if rounding is None else torch.rand(len(indices), generator=rounding)
            return packing.pack(indices, vector[indices], uniform)

        return self.rule(self.config, model_delta, memory, sparsify)


def plan(config: CompressionConfig, layout: ParameterLayout, density: float, device: torch.device) -> Plan:
    """What is selected of a layout at one density, and how it is written on `device`."""

    def segments_of(entries: Sequence[Entry]) -> list[Segment]:
        return SCOPES[config.scope](ParameterLayout(tuple(entries)), density, config.count_kept, config.block)

    def is_whole(entry: Entry) -> bool:
        if config.sends_everything or config.scope == "global":
            return config.sends_everything
        return all(config.is_whole(segment.numel, segment.k) for segment in segments_of([entry]))

    whole = [entry for entry in layout.entries if entry.numel and is_whole(entry)]
    segments = segments_of([entry for entry in layout.entries if entry not in whole])
    return Plan(segments, Packing.of(config, layout, whole, device))
