"""Plans: which parts of a layout are selected from at one density, and how what is chosen is written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from flare_dist.compression.config import CompressionConfig
from flare_dist.compression.packing import Packing
from flare_dist.compression.sparsifiers import SCOPES, SPARSIFIERS, Draws, Segment, select
from flare_dist.layout import Entry, ParameterLayout


class Plan(NamedTuple):
    """The segments to select from at one density, and how what is chosen is written."""

    segments: list[Segment]  # those that are sent whole are not among them
    packing: Packing
    config: CompressionConfig

    @property
    def max_kept(self) -> int:
        """Count the most entries that one client can send."""
        return self.packing.whole.numel() + sum(segment.k * segment.blocks for segment in self.segments)

    def choose(self, vector: Tensor, draws: Draws) -> Tensor:
        """Select the int64 indices to send of `vector`, those that are always sent at the end.

        `draws` gives the generator of each segment. Raises NotFiniteError as `select` does.
        """
        chosen = self.packing.whole[:0]
        if self.segments:  # or no sparsifier is needed
            chosen = select(vector, self.segments, SPARSIFIERS[self.config.sparsifier], draws, self.config.threshold)
        return self.packing.indices(chosen)


def plan(config: CompressionConfig, layout: ParameterLayout, density: float, device: torch.device) -> Plan:
    """Plan what is selected of a layout at one density, and how it is written on `device`."""

    if config.sends_everything:
        return Plan([], Packing.of(config, layout, layout.entries, device), config)

    def segments_of(entries: Sequence[Entry]) -> list[Segment]:
        return SCOPES[config.scope](ParameterLayout(tuple(entries)), density, config.count_kept, config.block)

    def is_whole(entry: Entry) -> bool:
        if config.scope == "global":
            return False
        return all(config.is_whole(segment.numel, segment.k) for segment in segments_of([entry]))

    whole = [entry for entry in layout.entries if entry.numel and is_whole(entry)]
    segments = segments_of([entry for entry in layout.entries if entry not in whole])
    return Plan(segments, Packing.of(config, layout, whole, device), config)
