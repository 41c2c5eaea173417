"""One client's compression: error feedback around a sparsifier and the codecs, with this round's randomness.

A plan tells which parts of a layout are selected from at one density, and how what is chosen is written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from flare_dist.compression import gpu_trial
from flare_dist.compression.config import CompressionConfig
from flare_dist.compression.error_feedback import State
from flare_dist.compression.gpu_segments import LONG, Parts, largest_of_segments, parts_of
from flare_dist.compression.packing import Packing
from flare_dist.compression.payload import Dense, Payload, Sparse
from flare_dist.compression.segments import SCOPES, Segment
from flare_dist.compression.sparsifiers import Sparsifier, check_finite, largest, randk, topk
from flare_dist.compression.unwaited import largest_unwaited
from flare_dist.devices import moved_unwaited
from flare_dist.layout import Entry, ParameterLayout
from flare_dist.seeding import generator

_LONG_BLOCK = 2**12  # entries

Draws = Callable[[Segment], torch.Generator]


@dataclass(frozen=True)
class Plan:
    """The segments to select from at one density, and how what is chosen is written."""

    segments: list[Segment]  # those that are sent whole are not among them
    packing: Packing
    sparsifier: Sparsifier
    threshold: float = 0.0  # of the sparsifier that has one

    @cached_property
    def max_kept(self) -> int:
        """Count the most entries that one client can send."""
        return self.packing.whole.numel() + sum(segment.k * segment.blocks for segment in self.segments)

    def choose(self, vector: Tensor, draws: Draws) -> Tensor:
        """Choose the int64 indices to send of `vector`: ascending, segment by segment, those always sent at the end.

        `draws` gives the generator of each segment. `vector` must be finite: raises NotFiniteError on a CPU and by
        magnitude if it is not.
        """
        if vector.is_cuda and self.sparsifier is topk and self._parts and gpu_trial.works(vector.device):
            return self._choose_on_gpu(vector)
        chosen = []
        # Positions drawn at random are drawn on the CPU, and go to a GPU together.
        source = torch.zeros(()).expand(vector.numel()) if self.sparsifier is randk else vector
        for segment in self.segments:
            offset, numel, k, blocks = segment
            generator = draws(segment)
            rows = source[offset : offset + blocks * numel].view(blocks, numel)
            if blocks > 1 and self.sparsifier is topk:
                if not rows.is_cuda:
                    check_finite(rows)
                chosen.append(largest_unwaited(rows.abs(), k) + offset)
            else:
                for place, row in enumerate(rows):
                    chosen.append(self.sparsifier(row, k, generator, self.threshold) + (offset + place * numel))
        if source is not vector and chosen:
            chosen = [moved_unwaited(torch.cat(chosen), vector.device)]
        return torch.cat([*chosen, self.packing.whole])

    @cached_property
    def _single(self) -> list[Segment]:
        """List the segments with each block as one of its own."""
        return [
            Segment(offset + block * numel, numel, k)
            for offset, numel, k, blocks in self.segments
            for block in range(blocks)
        ]

    @cached_property
    def _parts(self) -> Parts | None:
        """Divide the segments that are selected from together on a GPU; None if there are short blocks.

        Counting takes 8 KiB of each segment, which of blocks of 4096 entries are half their memory.
        """
        short = [segment for segment in self._single if segment.numel < LONG]
        has_short_blocks = any(segment.blocks > 1 and segment.numel < _LONG_BLOCK for segment in self.segments)
        return parts_of(short, self.packing.whole.device) if short and not has_short_blocks else None

    def _choose_on_gpu(self, vector: Tensor) -> Tensor:
        """Choose as `choose` does by magnitude, from all but very long segments at once."""
        assert self._parts
        chosen = largest_of_segments(vector, self._parts)
        counts = [segment.k for segment in self._single if segment.numel < LONG]
        if len(counts) == len(self._single):
            return torch.cat([chosen, self.packing.whole]) if self.packing.whole.numel() else chosen
        short = iter(chosen.split(counts))
        parts = [
            next(short) if numel < LONG else largest(vector[offset : offset + numel], k) + offset
            for offset, numel, k, _ in self._single
        ]
        return torch.cat([*parts, self.packing.whole])


def density_in(config: CompressionConfig, round_: int) -> float:
    """Return the density of a round, or of a hook's step, from 1: that of the warm-up, or the one that it leads to."""
    stage = (round_ - 1) // config.warmup_rounds
    return config.warmup[stage] if stage < len(config.warmup) else config.density


def plan(config: CompressionConfig, layout: ParameterLayout, density: float, device: torch.device) -> Plan:
    """Plan what is selected of a layout at one density, and how it is written on `device`."""

    if config.sends_everything:
        return Plan([], Packing.of(config, layout, layout.entries, device), config.selects)

    def segments_of(entries: Sequence[Entry]) -> list[Segment]:
        return SCOPES[config.scope](ParameterLayout(tuple(entries)), density, config.count_kept, config.block)

    def is_whole(entry: Entry) -> bool:
        if config.scope == "global":
            return False
        return all(config.is_whole(segment.numel, segment.k) for segment in segments_of([entry]))

    whole = [entry for entry in layout.entries if entry.numel and is_whole(entry)]
    segments = segments_of([entry for entry in layout.entries if entry not in whole])
    return Plan(segments, Packing.of(config, layout, whole, device), config.selects, config.threshold)


class Compressor:
    """The way from model deltas of one layout to payloads.

    `state_names` are the vectors that a client remembers, none if everything is sent.
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
        self.state_names, self.rule = config.feedback

    def plan(self, round_: int) -> Plan:
        """Return what a round selects from, and how it is written; not for dense updates."""
        return self._plans[density_in(self.config, round_)]

    @property
    def final_plan(self) -> Plan:
        """Return the plan of the density that a warm-up leads to."""
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
        at_random = plan_.packing.looks_at_draws and not self.state_names
        rounding = generator(self.seed, "rounding", round_, client) if at_random else None

        def sparsify(vector: Tensor) -> Sparse:
            indices = plan_.choose(vector, lambda segment: draws)
            uniform = None if rounding is None else torch.rand(len(indices), generator=rounding)
            return plan_.packing.pack(indices, vector[indices], uniform)

        return self.rule(self.config, model_delta, memory, sparsify)
