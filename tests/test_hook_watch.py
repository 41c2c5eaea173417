"""Copies of a model with a hook, and forwards that no exchange follows."""

from __future__ import annotations

import copy
import io
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

import flare_dist
from flare_dist.comm.world import World
from tests.helpers.hook import batch, net
from tests.ranks import run_ranks


def backward(model: nn.Module, rank: int, step: int = 0) -> None:
    inputs, labels = batch(rank, step)
    model.zero_grad()
    F.cross_entropy(model(inputs), labels).backward()


def saved_and_loaded(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


def wrapped_by(averaged: AveragedModel) -> nn.Module:
    assert isinstance(averaged.module, DistributedDataParallel)
    return averaged.module


class Answers(nn.Module):
    """A model whose output is a structure."""

    def __init__(self) -> None:
        super().__init__()
        self.body = net()

    def forward(self, x: Tensor) -> dict[str, list[Tensor]]:
        return {"scores": [self.body(x)]}


def copies(world: World) -> None:
    ddp = DistributedDataParallel(net())
    state = flare_dist.attach(ddp, density=0.05)
    backward(ddp, world.rank)
    averaged = AveragedModel(ddp)
    for clone in (copy.deepcopy(ddp), saved_and_loaded(ddp), wrapped_by(copy.deepcopy(averaged))):
        inputs, _ = batch(world.rank, 1)
        with torch.no_grad():
            clone(inputs)
        clone.eval()
        assert clone(inputs).requires_grad  # whatever it is for, as long as nothing goes back
        clone.train()
        assert isinstance(clone, DistributedDataParallel)
        with clone.no_sync():
            backward(clone, world.rank)
        clone.zero_grad()
        with pytest.raises(RuntimeError, match="attach again"):
            backward(clone, world.rank)
        assert all(parameter.grad is None for parameter in clone.parameters())
        again = flare_dist.attach(clone, density=0.05)
        backward(clone, world.rank, 1)
        assert (again.step, state.step) == (1, 1)
        with pytest.raises(ValueError, match="has a communication hook already, sparse_hook"):
            flare_dist.attach(clone)
    averaged.update_parameters(ddp)
    backward(ddp, world.rank, 1)
    assert state.step == 2

    answers = DistributedDataParallel(Answers())
    flare_dist.attach(answers)
    loss = copy.deepcopy(answers)(batch(world.rank, 0)[0])["scores"][0].sum()
    with pytest.raises(RuntimeError, match="attach again"):
        loss.backward()


def test_a_copy_is_never_silently_dense() -> None:
    run_ranks(copies, 2)


class Functional(nn.Module):
    """A table whose gradient turns out to be sparse."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.ones(10, 12))
        self.body = net()

    def forward(self, places: Tensor) -> Tensor:
        return self.body(F.embedding(places, self.table, sparse=True))


def surprises(world: World) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    ddp = DistributedDataParallel(net())
    state = flare_dist.attach(ddp, density=0.05)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        backward(ddp, world.rank)
        with ddp.no_sync():
            for step in range(99):
                backward(ddp, world.rank, step)
            seen["early"] = [str(warning.message) for warning in caught if "sparse hook" in str(warning.message)]
            for step in range(150):
                backward(ddp, world.rank, step)
    seen["late"] = [str(warning.message) for warning in caught if "sparse hook" in str(warning.message)]
    assert state.step == 1

    with pytest.raises(ValueError, match=r".") as refused, ddp.join(divide_by_initial_world_size=False):
        backward(ddp, world.rank)
    seen["join"] = str(refused.value)

    functional = DistributedDataParallel(Functional())
    flare_dist.attach(functional, density=(0.05, 1.0)[world.rank])
    with pytest.raises(RuntimeError, match=r".") as refused_gradient:
        functional(torch.tensor([1, 2])).sum().backward()
    seen["functional"] = str(refused_gradient.value)

    counters.clear()
    compiled: Any = torch.compile(DistributedDataParallel(net()), backend="eager")
    state = flare_dist.attach(compiled, density=0.05)
    for step in range(4):
        backward(compiled, world.rank, step)
    seen["compiled"] = state.step, counters["stats"].get("unique_graphs", 0)
    return seen


def test_what_would_go_wrong_in_silence_is_said() -> None:
    for seen in run_ranks(surprises, 2):
        assert seen["early"] == []
        (message,) = seen["late"]
        assert message.startswith(
            "the sparse hook has sent nothing for 100 training forwards: inside no_sync (LocalSGD"
        )
        assert seen["join"].startswith("join: divide_by_initial_world_size=False divides by the number of ranks")
        assert seen["functional"].startswith("the gradient of table is sparse")
        assert seen["compiled"][0] == 4
        assert seen["compiled"][1] <= 2  # not one for every step
