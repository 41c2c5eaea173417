"""ResNets for small images, and GroupNorm in place of BatchNorm."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flare_dist.layout import buffer_layout, parameter_layout
from flare_dist.models.registry import build
from flare_dist.models.resnet import with_group_norm
from flare_dist.tasks.builtin import CLASSIFICATION
from tests.helpers.models import CIFAR, weights


def test_resnet18_in_both_norms() -> None:
    grouped, batched = (build("resnet18", norm, CIFAR, 10, seed=0, task=CLASSIFICATION) for norm in ("group", "batch"))
    assert torch.equal(weights(grouped), weights(batched))
    for model, norm in ((grouped, nn.GroupNorm), (batched, nn.BatchNorm2d)):
        assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) == 20
        assert sum(isinstance(module, norm) for module in model.modules()) == 20
    assert buffer_layout(grouped).total == 0
    assert buffer_layout(batched).total == 2 * 4800


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (48, 24), (20, 20), (37, 1), (1, 1)])
def test_group_norm_takes_over(channels: int, groups: int) -> None:
    batch = nn.BatchNorm2d(channels, eps=0.25)
    norm = with_group_norm(nn.Sequential(batch))[0]  # type: ignore[index]
    assert isinstance(norm, nn.GroupNorm)
    assert (norm.num_groups, norm.num_channels, norm.eps) == (groups, channels, 0.25)
    assert norm.weight is batch.weight
    assert norm.bias is batch.bias
    plain = with_group_norm(nn.Sequential(nn.Sequential(nn.BatchNorm2d(channels, affine=False))))
    assert [type(module) for module in plain.modules()] == [nn.Sequential, nn.Sequential, nn.GroupNorm]
    assert not list(plain.parameters())


def test_a_norm_used_twice_is_replaced_twice() -> None:
    norm = nn.BatchNorm2d(4)
    model = with_group_norm(nn.Sequential(norm, nn.ReLU(), norm))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert parameter_layout(model).total == 8
