"""Pruning scores against small closed forms and against their definitions in float64."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flare_dist.sparse_training.criteria import CRITERIA, flow, gradient, hessian_gradient
from flare_dist.tasks.builtin import CLASSIFICATION


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def batches(seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    rng = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(n, 3, generator=rng, dtype=torch.float64), torch.randint(2, (n,), generator=rng)) for n in (5, 3)
    ]


def weight(module: nn.Sequential, place: int) -> Tensor:
    layer = module[place]
    assert isinstance(layer, nn.Linear)
    return layer.weight


def bias(module: nn.Sequential, place: int) -> Tensor:
    layer = module[place]
    assert isinstance(layer, nn.Linear)
    return layer.bias


def loss_of(module: nn.Sequential, flat: Tensor) -> Tensor:
    """The mean loss over all batches as a function of the two weight matrices."""
    first, second = flat[:12].view(4, 3), flat[12:].view(2, 4)
    inputs, labels = (torch.cat(parts) for parts in zip(*batches()))
    hidden = torch.tanh(F.linear(inputs, first, bias(module, 0)))
    return F.cross_entropy(F.linear(hidden, second, bias(module, 2)), labels)


def weights_of(module: nn.Sequential) -> tuple[list[Tensor], Tensor]:
    weights: list[Tensor] = [weight(module, 0), weight(module, 2)]
    return weights, torch.cat([w.detach().flatten() for w in weights])


def test_the_gradient_is_that_of_the_mean_loss_over_all_batches() -> None:
    module = net()
    weights, flat = weights_of(module)
    expected = torch.autograd.functional.jacobian(lambda w: loss_of(module, w), flat)
    measured = torch.cat([part.flatten() for part in gradient(module, weights, batches(), CLASSIFICATION)])
    torch.testing.assert_close(measured, expected, rtol=0, atol=1e-12)
    snip = CRITERIA["snip"].finish(flat, measured)
    torch.testing.assert_close(snip, (flat * expected).abs(), rtol=0, atol=1e-12)
    torch.testing.assert_close(CRITERIA["threshold"].finish(flat, measured), expected.abs(), rtol=0, atol=1e-12)


def test_grasp_is_the_weight_times_the_hessian_times_the_gradient() -> None:
    module = net()
    weights, flat = weights_of(module)
    hessian = torch.autograd.functional.hessian(lambda w: loss_of(module, w), flat)
    slope = torch.autograd.functional.jacobian(lambda w: loss_of(module, w), flat)
    measured = torch.cat([part.flatten() for part in hessian_gradient(module, weights, batches(), CLASSIFICATION)])
    torch.testing.assert_close(measured, hessian @ slope, rtol=0, atol=1e-12)
    torch.testing.assert_close(CRITERIA["grasp"].finish(flat, measured), flat * (hessian @ slope), rtol=0, atol=1e-12)


def test_synflow_of_a_chain_is_the_product_of_the_paths_through_each_weight() -> None:
    """R = sum over paths of products of |w|: for 2 x 2 matrices each weight's share is worked out by hand."""
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.ReLU(), nn.Linear(2, 2), nn.Softmax(dim=1))
    first, second = torch.tensor([[1.0, -2.0], [3.0, 4.0]]), torch.tensor([[-5.0, 6.0], [7.0, 8.0]])
    weight(module, 0).data, weight(module, 3).data = first, second
    module.eval()
    measured = flow(
        module, [weight(module, 0), weight(module, 3)], [(torch.zeros(1, 2), torch.zeros(1))], CLASSIFICATION
    )
    # columns of the second: 12 and 14; rows of the first: 3 and 7
    scores = [CRITERIA["synflow"].finish(w.double(), m) for w, m in zip((first, second), measured)]
    expected = [torch.tensor([[12.0, 24.0], [42.0, 56.0]]), torch.tensor([[15.0, 42.0], [21.0, 56.0]])]
    for found, wanted in zip(scores, expected):
        torch.testing.assert_close(found * 14, wanted.double(), rtol=0, atol=1e-12)  # scores are up to a factor
    assert all(torch.equal(p, q) for p, q in zip((weight(module, 0), weight(module, 3)), (first, second)))
    assert weight(module, 0).dtype == torch.float32
    assert "forward" not in vars(module[1])
    assert not module.state_dict()["1.running_mean"].any()


def test_a_look_at_the_data_leaves_the_model_as_it_was() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    module.eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    data = [(inputs.float(), labels) for inputs, labels in batches()]
    for measure in (gradient, hessian_gradient, flow):
        measure(module, [weight(module, 0), weight(module, 3)], data, CLASSIFICATION)
        assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
        assert all(p.grad is None for p in module.parameters())
        assert not module.training
