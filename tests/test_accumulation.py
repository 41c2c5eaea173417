"""A batch in pieces has the gradient of the whole batch, however many of its labels count in each piece."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from flare_dist.engines.accumulation import backward_in_pieces
from flare_dist.tasks.batch import split
from flare_dist.tasks.builtin import CLASSIFICATION, IGNORED
from flare_dist.tasks.task import Count
from tests.helpers.engines import small_net


def gradient_in_pieces(
    sizes: list[int], labels: Tensor, ignores: bool, rank_weight: float | None = None
) -> tuple[Tensor, Tensor, Count]:
    """(gradient, mean loss, labels that count) of nine examples."""
    net = small_net()
    gradient = torch.zeros(sum(p.numel() for p in net.parameters()))
    for parameter, view in zip(net.parameters(), gradient.split([p.numel() for p in net.parameters()])):
        parameter.grad = view.view_as(parameter)
    task = CLASSIFICATION._replace(ignored=IGNORED) if ignores else CLASSIFICATION
    inputs = torch.randn(9, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    weight = None if rank_weight is None else lambda count: rank_weight
    loss, count = backward_in_pieces(task, net, split((inputs, labels), sizes), gradient, Tensor.backward, weight)
    return gradient, loss, count


@pytest.mark.parametrize("sizes", [[9], [3, 3, 3], [1, 8], [4, 4, 1]], ids=str)
@pytest.mark.parametrize("ignores", [False, True])
def test_pieces_have_the_gradient_of_the_whole(sizes: list[int], ignores: bool) -> None:
    """Ignored labels stand at the front: one first piece has none that counts."""
    labels = torch.arange(9) % 3
    if ignores:
        labels[:2] = IGNORED
    net = small_net()
    inputs = torch.randn(9, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    loss = F.cross_entropy(net(inputs), labels, ignore_index=IGNORED)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))])
    gradient, found, count = gradient_in_pieces(sizes, labels, ignores)
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(found, loss.detach())
    assert count == (7 if ignores else 9)


def test_a_rank_s_weight_scales_gradient_and_loss_of_all_pieces() -> None:
    labels = torch.arange(9) % 3
    labels[4] = IGNORED
    whole, loss, _ = gradient_in_pieces([4, 5], labels, ignores=True)
    part, own, _ = gradient_in_pieces([4, 5], labels, ignores=True, rank_weight=0.25)
    torch.testing.assert_close(part, whole / 4)
    torch.testing.assert_close(own, loss / 4)
