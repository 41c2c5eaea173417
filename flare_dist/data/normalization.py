"""Statistics that normalise images, by name: each function returns the mean and deviation of each channel, float32 [C].

A new one is one function and one line in NORMALIZATIONS.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flare_dist.data.examples import Examples, channel_statistics
from flare_dist.data.source import Source


def standard(train: Examples, source: Source) -> tuple[Tensor, Tensor]:
    """Give each channel mean 0 and deviation 1 over the training examples."""
    return channel_statistics(train.inputs)


def unit(train: Examples, source: Source) -> tuple[Tensor, Tensor]:
    """Bring pixels into [0, 1]."""
    channels = train.inputs.shape[1]
    return torch.zeros(channels), torch.full((channels,), source.white)


def raw(train: Examples, source: Source) -> tuple[Tensor, Tensor]:
    """Leave pixels as they are."""
    channels = train.inputs.shape[1]
    return torch.zeros(channels), torch.ones(channels)


NORMALIZATIONS: dict[str, Callable[[Examples, Source], tuple[Tensor, Tensor]]] = {
    "standard": standard,
    "unit": unit,
    "none": raw,
}
