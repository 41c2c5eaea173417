"""Normalisation of images by name: each brings the training inputs into its range."""

from __future__ import annotations

import torch
from torch import Tensor

from flare_dist.data.config import DataConfig
from flare_dist.data.datasets import load
from flare_dist.data.synthetic import SyntheticConfig

SMALL = SyntheticConfig(examples=300, test_examples=80, shape=(3, 8, 8), classes=5, groups=7)


def test_normalize_brings_inputs_into_its_range() -> None:
    def range_of(normalize: str, name: str = "digits") -> Tensor:
        splits = load(DataConfig(name=name, normalize=normalize, synthetic=SMALL), seed=0)
        return (splits.train.inputs - splits.mean.view(-1, 1, 1)) / splits.std.view(-1, 1, 1)

    x = range_of("standard", "synthetic")
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std((0, 2, 3), correction=0), torch.ones(3))
    assert (range_of("unit").min(), range_of("unit").max()) == (0, 1)
    assert range_of("unit", "synthetic").max() == 1
    assert range_of("none").max() == 16
