"""A flat vector is the model, tensor by tensor."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flare_dist.layout import ParameterLayout, bind_buffers, bind_parameters, buffer_layout, parameter_layout


class Tied(nn.Module):
    """One weight used twice, a frozen one, and a trainable scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.inner = nn.Linear(3, 3, bias=False)
        self.outer = nn.Linear(3, 3)
        self.outer.weight = self.inner.weight
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.outer(self.inner(self.frozen(x)))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))


def inputs() -> Tensor:
    return torch.randn(5, 1, 4, 4, generator=seeded())


def test_the_layout_within_a_mask_keeps_names_and_whole_tensors() -> None:
    whole = ParameterLayout.of([(name, torch.empty(n)) for name, n in (("a", 300), ("bias", 7), ("b", 500))])
    mask = torch.rand(807, generator=seeded()) < 0.2
    mask[300:307] = True
    layout = whole.within(mask)
    assert [entry.name for entry in layout.entries] == ["a", "bias", "b"]
    assert [entry.numel for entry in layout.entries] == [int(own.sum()) for _, own in whole.views(mask)]
    assert layout.total == int(mask.sum())
    assert layout.entries[1].shape == (7,)


def test_entries_follow_the_model() -> None:
    layout = parameter_layout(network())
    assert layout.describe() == [
        ["0.weight", [2, 1, 3, 3]],
        ["0.bias", [2]],
        ["1.weight", [2]],
        ["1.bias", [2]],
        ["3.weight", [3, 8]],
        ["3.bias", [3]],
    ]
    assert [entry.offset for entry in layout.entries] == [0, 18, 20, 22, 24, 48]
    assert layout.total == 51


def test_scalars_take_one_entry_and_empty_tensors_none() -> None:
    layout = ParameterLayout.of([("a", torch.ones(2)), ("none", torch.ones(0, 3)), ("one", torch.tensor(1.0))])
    assert [(entry.offset, entry.numel) for entry in layout.entries] == [(0, 2), (2, 0), (2, 1)]
    assert layout.total == 3
    assert [tuple(view.shape) for _, view in layout.views(torch.zeros(3))] == [(2,), (0, 3), ()]
    assert ParameterLayout(()).total == 0


def test_views_cover_the_vector_once_and_write_through() -> None:
    layout = parameter_layout(network())
    vector = torch.arange(51.0)
    views = dict(layout.views(vector))
    assert torch.equal(torch.cat([view.flatten() for view in views.values()]), torch.arange(51.0))
    for view in views.values():
        view.neg_()
    assert torch.equal(vector, -torch.arange(51.0))


@pytest.mark.parametrize("shape", [(50,), (52,), (51, 1), ()])
def test_a_vector_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected a vector of 51 entries"):
        list(parameter_layout(network()).views(torch.zeros(shape)))


def test_binding_changes_no_value() -> None:
    plain, model = network(), network()
    parameters, gradient = bind_parameters(model, parameter_layout(model))
    bind_buffers(model, buffer_layout(model))
    assert parameters.dtype == gradient.dtype == torch.float32
    assert torch.equal(parameters, torch.cat([p.detach().flatten() for p in plain.parameters()]))
    assert not gradient.any()
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), model.state_dict().values()))
    assert torch.equal(plain(inputs()), model(inputs()))


def test_the_model_lives_in_the_vector() -> None:
    model, other = network(), network()
    parameters, _ = bind_parameters(model, parameter_layout(model))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(3)
    parameters.mul_(3)
    assert torch.equal(model(inputs()), other(inputs()))


def test_gradients_accumulate_in_the_vector() -> None:
    plain, model = network(), network()
    _, gradient = bind_parameters(model, parameter_layout(model))
    labels = torch.arange(5) % 3
    for _ in range(2):
        F.cross_entropy(plain(inputs()), labels).backward()
        F.cross_entropy(model(inputs()), labels).backward()
        expected = torch.cat([p.grad.flatten() for p in plain.parameters() if p.grad is not None])
        assert torch.equal(gradient, expected)
        assert gradient.any()


def test_tied_parameters_have_one_entry_and_frozen_ones_none() -> None:
    model = Tied()
    plain = copy.deepcopy(model)
    layout = parameter_layout(model)
    assert [entry.name for entry in layout.entries] == ["scale", "inner.weight", "outer.bias"]
    parameters, gradient = bind_parameters(model, layout)
    x = torch.randn(4, 3, generator=seeded())
    model(x).square().sum().backward()
    plain(x).square().sum().backward()
    assert plain.inner.weight.grad is not None
    assert torch.equal(dict(layout.views(gradient))["inner.weight"], plain.inner.weight.grad)
    parameters.fill_(0.5)
    assert model.outer.weight is model.inner.weight
    assert (model.outer.weight == 0.5).all()
    assert torch.equal(model.frozen.weight, plain.frozen.weight)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_precisions_are_refused(dtype: torch.dtype) -> None:
    model = network().to(dtype)
    with pytest.raises(ValueError, match=rf"^parameter 0\.weight is {dtype}; flat vectors take float32 or bfloat16"):
        bind_parameters(model, parameter_layout(model))


def test_buffers_are_the_floating_point_ones_and_live_in_their_vector() -> None:
    plain, model = network(), network()
    layout = buffer_layout(model)
    assert layout.describe() == [["1.running_mean", [2]], ["1.running_var", [2]]]
    buffers = bind_buffers(model, layout)
    assert torch.equal(buffers, torch.tensor([0.0, 0.0, 1.0, 1.0]))
    plain(inputs())
    model(inputs())
    norm = plain[1]  # type: ignore[index]
    assert torch.equal(buffers, torch.cat([norm.running_mean, norm.running_var]))
    assert not torch.equal(buffers, torch.tensor([0.0, 0.0, 1.0, 1.0]))
    buffers.copy_(torch.tensor([5.0, 6.0, 7.0, 8.0]))
    assert torch.equal(model.state_dict()["1.running_var"], torch.tensor([7.0, 8.0]))


def test_a_model_without_buffers_has_an_empty_vector() -> None:
    model = nn.Linear(2, 2)
    assert bind_buffers(model, buffer_layout(model)).shape == (0,)
