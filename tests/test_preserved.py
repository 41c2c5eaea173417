"""A trial leaves no trace in the model, but for what the model makes at its first call."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from flare_dist.layout import parameter_layout
from flare_dist.preserved import preserved


class Restless(nn.Module):
    """Changes everything that a module may hold at every call."""

    replaced: Tensor
    counted: Tensor
    missing: Tensor | None
    flags: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3, momentum=None)
        self.register_buffer("replaced", torch.zeros(3))
        self.register_buffer("counted", torch.zeros((), dtype=torch.int64))
        self.register_buffer("missing", None)
        self.register_buffer("flags", torch.ones(3, dtype=torch.bool))
        self.register_buffer("shared", torch.zeros(1).expand(3))
        self.calls = 0
        self.last = self.linear(torch.ones(2, 3))  # no leaf: cannot be copied

    def forward(self, inputs: Tensor) -> Tensor:
        self.replaced = self.replaced + 1
        self.counted += 1
        self.missing = torch.ones(3)
        self.flags.logical_not_()
        self.calls += 1
        self.linear.weight.data.mul_(2)
        self.linear.bias = nn.Parameter(torch.ones(3))
        self.last = self.seen = self.norm(self.linear(inputs))
        return self.last


def test_a_preserved_model_is_as_it_came() -> None:
    model = Restless()
    model.norm.eval()
    attributes = dict(vars(model))
    tensors = [*model.parameters(), *model.buffers()]
    before = [tensor.detach().clone() for tensor in tensors]
    with preserved(model):
        for training in (True, False):
            model.train(training)(torch.randn(4, 3))
        assert model.calls == 2
    assert (model.training, model.norm.training, model.calls) == (True, False, 0)
    after = [*model.parameters(), *model.buffers()]
    assert all(one is other for one, other in zip(tensors, after, strict=True))
    assert all(map(torch.equal, after, before))
    assert vars(model).keys() == attributes.keys()
    assert model.last is attributes["last"]
    with pytest.raises(RuntimeError), preserved(model):
        model(torch.randn(4, 5))  # the weights have changed already
    assert all(map(torch.equal, [*model.parameters(), *model.buffers()], before))


def test_modules_and_parameters_made_at_the_first_call_stay() -> None:
    class Growing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.LazyLinear(3)
            self.second: nn.Module | None = None

        def forward(self, inputs: Tensor) -> Tensor:
            hidden: Tensor = self.first(inputs)
            if self.second is None:
                self.second = nn.Linear(hidden.shape[1], 2)
            scores: Tensor = self.second(hidden)
            return scores

    model = Growing()
    with preserved(model):
        scores = model(torch.ones(2, 5))
    assert parameter_layout(model).total == 5 * 3 + 3 + 3 * 2 + 2
    assert torch.equal(model(torch.ones(2, 5)), scores)
