"""A source of small random images whose labels are their row numbers, and epochs over it."""

from __future__ import annotations

import torch
from torch import Tensor

from flare_dist.data.batches import Batches, BatchSource
from flare_dist.data.examples import Examples

MEAN = torch.tensor([100.0, 120.0, 140.0])

STD = torch.tensor([50.0, 60.0, 70.0])


def pixel_source(augment: str = "none", n: int = 53, device: str = "cpu") -> BatchSource:
    rng = torch.Generator().manual_seed(0)
    inputs = torch.randint(256, (n, 3, 10, 7), dtype=torch.uint8, generator=rng)
    return BatchSource(Examples(inputs, torch.arange(n)), MEAN, STD, device, augment)


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def epoch(
    data: BatchSource, rng: torch.Generator | None, indices: Tensor | None = None, size: int = 8
) -> tuple[Tensor, Tensor]:
    inputs, labels = zip(*data.batches(indices, size, rng))
    return torch.cat(inputs), torch.cat(labels)


def normalised(data: BatchSource, labels: Tensor) -> Tensor:
    """Labels are row numbers here, so they say which image was meant."""
    return (data.inputs[labels].float() - MEAN.view(-1, 1, 1)) / STD.view(-1, 1, 1)


def resident(source: Batches) -> BatchSource:
    """The source of examples in memory, whose tensors a test may change."""
    assert isinstance(source, BatchSource)
    return source
