"""A fragment sends local work, addressed by rows, in whichever precision and order the weights are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import flare_dist
from flare_dist.comm.world import World
from tests.ranks import run_ranks


def leave_a_residual(world: World) -> tuple[Tensor, Tensor]:
    model: Any = torch.nn.Conv2d(3, 4, 2, bias=False).to(memory_format=torch.channels_last)
    outer = flare_dist.outer(model, every=1, density=0.25, outer_options={"lr": 1.0})
    moved = torch.arange(1.0, 1 + model.weight.numel()).view(model.weight.shape)
    with torch.no_grad():
        model.weight.sub_(moved)
    outer.step()
    return outer.state_dict()["memory"]["weight"]["residual"], moved


def test_the_residual_of_a_channels_last_weight_lies_where_the_weight_does() -> None:
    """So that a model in another memory format takes it over."""
    for residual, moved in run_ranks(leave_a_residual, 2):
        torch.testing.assert_close(residual, torch.where(moved <= 36, moved, 0.0), rtol=1e-4, atol=1e-5)


def stand_still(world: World) -> tuple[Tensor, Tensor]:
    model: Any = torch.nn.Linear(1, 1, bias=False).bfloat16()
    torch.nn.init.ones_(model.weight)
    outer = flare_dist.outer(model, every=1, outer_options={"lr": 0.25})
    with torch.no_grad():
        model.weight.sub_(2**-8)  # one step of bfloat16 below 1
    outer.step()
    after = outer.fragments[0].global_vector.clone()
    for _ in range(3):
        outer.step()
    return after, outer.fragments[0].global_vector.clone()


def test_what_bfloat16_rounds_off_is_no_local_work() -> None:
    for after, later in run_ranks(stand_still, 2):
        assert float(after) == 1 - 2**-10
        assert torch.equal(after, later)
