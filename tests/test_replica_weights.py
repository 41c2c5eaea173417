"""Replicas begin as the first one, with all that is not trained, and notice if what they exchange is no longer that."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flare_dist
from flare_dist.comm.collectives import alone_group
from flare_dist.comm.world import World
from tests.ranks import run_ranks


class Named(nn.Module):
    """Has parameters whose names differ by the prefix of a wrapper, frozen ones, a scalar and an empty one."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.module = nn.Linear(4, 3)
        self.weight = nn.Parameter(torch.randn(3))
        self.scale = nn.Parameter(torch.randn(()))
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.empty = nn.Parameter(torch.empty(0, 3))
        self.norm = nn.BatchNorm1d(3)
        self.table = nn.Buffer(torch.randn(1, 3).expand(2, 3))


def begin(world: World) -> tuple[dict[str, Tensor], set[str]]:
    model = Named(seed=world.rank)
    outer = flare_dist.outer(model, every=2)
    values = {name: tensor.detach() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    return {name: value.contiguous() for name, value in values.items()}, set(outer.shapes)


def test_replicas_begin_as_the_first_with_frozen_layers_and_buffers() -> None:
    (first, names), (second, _) = run_ranks(begin, 2)
    expected = Named(seed=0)
    for name, tensor in [*expected.named_parameters(), *expected.named_buffers()]:
        assert torch.equal(first[name], tensor), name
        assert torch.equal(second[name], tensor), name
    assert names == {"module.weight", "module.bias", "weight", "scale", "norm.weight", "norm.bias"}


def change(world: World) -> list[str]:
    said = []
    for what in ("unfrozen", "frozen", "moved"):
        model = Named(seed=0)
        outer = flare_dist.outer(model, every=2)
        outer.step()
        if what == "moved":
            model.double()
        else:
            (model.frozen if what == "unfrozen" else model.module).requires_grad_(what == "unfrozen")
        with pytest.raises(ValueError, match="outer: ") as error:
            outer.step()
        said.append(str(error.value))
    return said


def test_parameters_that_change_are_named_before_they_are_sent() -> None:
    for said in run_ranks(change, 2):
        assert "got requires_grad=True of frozen.weight since" in said[0]
        assert "got requires_grad=False of module.weight since" in said[1]
        assert "got weight elsewhere; call outer() behind model.to()" in said[2]


def differ(world: World) -> list[str]:
    model = Named(seed=0)
    alone = alone_group()[1]
    given: list[tuple[nn.Module, dict[str, Any]]] = [
        (model, {"every": 2 + world.rank}),
        (model, {"outer_optimizer": torch.optim.Adam if world.rank else torch.optim.SGD, "outer_options": {"lr": 1.0}}),
        (model, {"density": 0.1 if world.rank else 1.0}),
        (model, {"process_group": alone}),
        (Named(seed=0).double() if world.rank else model, {}),
        (nn.ParameterList([torch.ones(3, dtype=torch.complex64)]), {}),
    ]
    said = []
    for built, settings in given:
        with pytest.raises(ValueError, match="outer") as error:
            flare_dist.outer(built, **settings)
        said.append(str(error.value))
    return said


def test_what_differs_between_replicas_is_refused_on_all() -> None:
    for said in run_ranks(differ, 2):
        assert said[0].startswith(
            "outer.every: must be the same on all replicas, got 2 on replica 0 and 3 on replica 1;"
        )
        assert "got SGD on replica 0 and Adam on replica 1" in said[1]
        assert said[2].startswith("outer.density: must be the same")
        assert "one replica has nobody" in said[3]
        assert " has another " in said[4]
        assert "got torch.complex64 in 0; use real ones" in said[5]
