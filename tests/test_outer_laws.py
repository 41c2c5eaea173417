"""Outer steps in every step are the hook behind a preconditioner, and survive kill -9 in the middle of a window."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import flare_dist
from flare_dist.comm.world import World
from tests.ranks import run_ranks
from tests.test_outer import batch, net

SPARSE: dict[str, Any] = {"density": 0.1, "warmup": [1.0], "warmup_rounds": 5}
STEPS = 200
LR = 1e-3


def train_by_outer_steps(world: World) -> list[Tensor]:
    model = net()
    outer = flare_dist.outer(model, every=1, outer_options={"lr": 1.0}, **SPARSE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.0, 0.99), weight_decay=0)
    return steps_of(world, model, optimizer, outer.step)


def train_by_the_hook(world: World) -> list[Tensor]:
    ddp = DistributedDataParallel(net())
    flare_dist.attach(ddp, preconditioner="adam", betas=(0.0, 0.99), update_clip=float("inf"), **SPARSE)
    return steps_of(world, ddp, torch.optim.SGD(ddp.parameters(), lr=LR), lambda: None)


def steps_of(world: World, model: nn.Module, optimizer: torch.optim.Optimizer, after: Any) -> list[Tensor]:
    for step in range(1, STEPS + 1):
        inputs, labels = batch(step, world.rank)
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        after()
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_an_inner_adamw_without_momentum_is_the_preconditioner() -> None:
    """At a constant rate and without decay, which would enter what is fed back."""
    by_outer, by_hook = run_ranks(train_by_outer_steps, 2)[0], run_ranks(train_by_the_hook, 2)[0]
    before = list(net().parameters())
    for a, b, start in zip(by_outer, by_hook, before):
        assert (b - start).abs().max() > 10 * LR
        assert (a - b).norm() <= 1e-5 * b.norm()
