"""Models that cannot be trained for many clients as one batch are found, with the reason."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flare_dist.clients import batchable


@pytest.mark.parametrize(
    ("free", "most"), [(0, 1), (4 * 2**30, 256), (4 * 4 * (6 * 250 + 4 * 10 * 300) * 50 + 4, 50)], ids=str
)
def test_as_many_clients_as_a_gpu_has_room_for(free: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of what is free: six vectors of the model's size, and what the batch keeps four times over."""
    model = nn.Sequential(nn.Linear(24, 10), nn.Identity())
    assert sum(parameter.numel() for parameter in model.parameters()) == 250
    monkeypatch.setattr(batchable, "kept_for_backward", lambda model, blank: 300)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2 * free))
    assert batchable.most_clients(model, torch.zeros(1, 24), 10, torch.device("cuda", 0)) == most
    assert batchable.most_clients(model, torch.zeros(1, 24), 10, torch.device("cpu")) == batchable.MOST_ON_CPU


def test_what_a_backward_pass_needs_is_counted() -> None:
    model = nn.Sequential(nn.Linear(24, 10), nn.Tanh(), nn.Linear(10, 3))
    assert batchable.kept_for_backward(model, torch.zeros(1, 24)) == 24 + 10 + 10 + 30  # inputs, tanh twice, weights


class Branching(nn.Module):
    """What it does depends on the values that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.layer(x)
        return scores if scores.sum() > 0 else -scores


class Acting(nn.Module):
    """A linear layer, and something else."""

    def __init__(self, act: Callable[[Acting, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.act = nn.Linear(4, 4), act
        self.register_buffer("calls", torch.zeros(()))
        self.calls: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self, self.layer(x))


def count(model: Acting, x: Tensor) -> Tensor:
    model.calls += 1
    return x


def replace_count(model: Acting, x: Tensor) -> Tensor:
    model.calls = model.calls + x.detach().sum()
    return x


class HiddenMean(nn.Module):
    """What it makes of the other examples counts for nothing yet, as in a residual branch that begins with zero."""

    def __init__(self, first: nn.Module, gate: float) -> None:
        super().__init__()
        self.first, self.gate = first, nn.Parameter(torch.full((4,), gate))

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.first(x)
        return hidden + self.gate * hidden.mean(0)


def test_dependence_that_initial_weights_or_equal_texts_hide_is_found() -> None:
    text = torch.zeros(1, 5, dtype=torch.int64)
    for model, blank in (
        (HiddenMean(nn.Linear(4, 4), 0.0), torch.zeros(1, 4)),
        (HiddenMean(nn.Embedding(9, 4), -1.0), text),
    ):
        found = batchable.why_not_batchable(model, blank)
        assert found == "the model's examples are not independent of the others in their batch"


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.GroupNorm(2, 4)), None),
        (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), "the model has BatchNorm, "),
        (nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1)), "the model has dropout, "),
        (nn.GRU(4, 4), "the model has recurrent layers, "),
        (Branching(), "torch.func.vmap does not take the model (vmap: "),
        (Acting(lambda model, x: x), None),
        (Acting(lambda model, x: F.dropout(x, 0.5)), "torch.func.vmap does not take the model (vmap: called random"),
        (Acting(lambda model, x: x * random.random()), "the model draws from numpy or random"),
        (Acting(lambda model, x: x if np.random.random() < 2 else -x), "the model draws from numpy or random"),
        (Acting(lambda model, x: x - x.mean(0)), "the model's examples are not independent"),
        (Acting(count), "the model changes its buffers"),
        (Acting(replace_count), "the model changes its buffers"),
    ],
)
def test_models_that_cannot_be_batched_are_found_with_the_reason(model: nn.Module, reason: str | None) -> None:
    before = copy.deepcopy(model.state_dict())
    found = batchable.why_not_batchable(model, torch.zeros(1, 4))
    assert found == reason or (reason is not None and found is not None and found.startswith(reason))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
