"""Small models: a pool that is fast on CPUs."""

from __future__ import annotations

import torch
from torch import nn

from flare_dist.models.small import OverlappingMaxPool


def test_a_pool_with_the_channels_innermost_has_the_bits_of_torch_s() -> None:
    """Values, and gradients where windows overlap and entries are equal."""
    ends = []
    for pool in (nn.MaxPool2d(3, stride=1), OverlappingMaxPool(3, stride=1)):
        draws = torch.Generator().manual_seed(0)
        inputs = torch.randint(-3, 4, (4, 10, 12, 9), generator=draws).float().requires_grad_()
        outputs = pool(inputs)
        outputs.backward(torch.randn(outputs.shape, generator=draws))
        assert outputs.is_contiguous()
        ends.append((outputs, inputs.grad))
    assert all(map(torch.equal, *ends))
