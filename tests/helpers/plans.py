"""Plans made by hand."""

from __future__ import annotations

import torch
from torch import Tensor

from flare_dist.compression.compressor import Draws, Plan
from flare_dist.compression.config import CompressionConfig
from flare_dist.compression.packing import Packing
from flare_dist.compression.segments import Segment


def chosen(vector: Tensor, segments: list[Segment], sparsifier: str, draws: Draws, threshold: float = 0.0) -> Tensor:
    """Choose the entries of these segments alone."""
    config = CompressionConfig(sparsifier=sparsifier, threshold=threshold)
    nothing = torch.empty(0, dtype=torch.int64, device=vector.device)
    return Plan(segments, Packing(config.codecs, vector.numel(), nothing, nothing), config.selects, threshold).choose(
        vector, draws
    )
