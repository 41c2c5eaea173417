"""Selection of a step from one bucket, and its random numbers; buckets of other sizes select the same."""

from __future__ import annotations

import torch
from torch import Tensor

from flare_dist.compression.compressor import Plan, density_in, plan
from flare_dist.compression.config import CompressionConfig
from flare_dist.compression.segments import Segment
from flare_dist.compression.sparsifiers import check_finite
from flare_dist.layout import Entry, ParameterLayout
from flare_dist.named import WrongResultError, name_of
from flare_dist.seeding import generator


class BucketSelection:
    """The selection from one bucket's tensors, and its plans."""

    def __init__(self, layout: ParameterLayout, config: CompressionConfig, device: torch.device) -> None:
        self.layout = layout
        self.config = config
        self.device = device
        self._plans: dict[float, Plan] = {}

    def plan(self, step: int) -> Plan:
        """Return what a step selects from, and how what is sent is written."""
        density = density_in(self.config, step)
        if density not in self._plans:
            self._plans[density] = plan(self.config, self.layout, density, self.device)
        return self._plans[density]

    def choose(self, update: Tensor, draw: tuple[int, int, int]) -> Tensor:
        """Choose the indices to send, whole tensors last; random ones follow from `draw`: seed, step and rank.

        Raises NotFiniteError on a CPU if a value that it selects from is NaN or infinite.
        """
        seed, step, rank = draw
        if self.config.sparsifier in ("topk", "auto"):
            unused = generator(seed, "unused")
            return self.plan(step).choose(update, lambda segment: unused)
        if not update.is_cuda:  # topk looks at everything
            check_finite(update)

        def draws(segment: Segment) -> torch.Generator:  # each tensor draws for itself, so that buckets do not matter
            return generator(seed, f"sparsifier of {self._entry_at(segment.offset).name}", step, rank)

        plan_ = self.plan(step)
        chosen = plan_.choose(update, draws)
        if chosen.numel() != plan_.max_kept:  # those of the other ranks would not be read
            raise WrongResultError(
                f"compression.sparsifier: {name_of(self.config.sparsifier)} must return exactly k positions in steps, "
                f"{plan_.max_kept} of a bucket, got {chosen.numel()}"
            )
        return chosen

    def draws(self, draw: tuple[int, int, int]) -> Tensor:
        """Draw uniform numbers for what a step sends, as `choose` orders it; buckets of other sizes draw the same."""
        seed, step, rank = draw
        segments = self.plan(step).segments
        counts = [(self._entry_at(segment.offset), segment.offset, segment.k * segment.blocks) for segment in segments]
        selected_from = [entry for entry, _, _ in counts]
        counts += [(e, e.offset, e.numel) for e in self.layout.entries if e not in selected_from]

        def uniform(entry: Entry, offset: int, count: int) -> Tensor:
            purpose = f"rounding of {entry.name} from {offset - entry.offset}"
            return torch.rand(count, generator=generator(seed, purpose, step, rank))

        return torch.cat([uniform(*each) for each in counts])

    def _entry_at(self, offset: int) -> Entry:
        return next(entry for entry in self.layout.entries if offset < entry.end)
