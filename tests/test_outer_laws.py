"""Outer steps in every step are the hook behind a preconditioner, and survive kill -9 in the middle of a window."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import flare_dist
from flare_dist.comm.world import World
from tests.ranks import run_ranks
from tests.test_launch import wait_until
from tests.test_outer import LR as INNER_LR
from tests.test_outer import RESUMED, adamw, batch, inner_step, net, train
from tests.test_outer import STEPS as WINDOWS

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


KILLED_IN = 14  # one fragment is on the way then


def train_until_killed(world: World, directory: Path) -> None:
    """Save in each step; the second replica is killed before it has saved one that the first has saved."""
    model = net(seed=world.rank)
    outer = flare_dist.outer(model, **RESUMED)
    optimizer = adamw(model)
    for step in range(1, WINDOWS + 1):
        inner_step(model, optimizer, step, world.rank)
        outer.step(lr=INNER_LR)
        if (world.rank, step) == (1, KILLED_IN):
            wait_until(lambda: any(directory.glob(f"sparse-hook-outer-00000-*-step-{KILLED_IN}.pt")), 20)
            os.kill(os.getpid(), signal.SIGKILL)
        torch.save(optimizer.state_dict(), directory / f"inner-{world.rank}-{step}.pt")
        flare_dist.save_hook_state(outer, directory)


def go_on(world: World, directory: Path) -> tuple[int, list[Tensor]]:
    """The step that was saved last on both replicas, and local and global weights at the end."""
    model = net(seed=7)  # nothing of it counts
    outer = flare_dist.outer(model, **RESUMED)
    with pytest.raises(ValueError, match="rank 1 of 2 are missing of step") as error:  # on both
        flare_dist.load_hook_state(outer, directory)
    saved = int(re.findall(r" or load step=(\d+), which is whole", str(error.value))[0])
    flare_dist.load_hook_state(outer, directory, step=saved)
    optimizer = adamw(model)
    optimizer.load_state_dict(torch.load(directory / f"inner-{world.rank}-{saved}.pt"))
    for step in range(saved + 1, WINDOWS + 1):
        inner_step(model, optimizer, step, world.rank)
        outer.step(lr=INNER_LR)
    own = [parameter.detach().clone() for parameter in model.parameters()]
    with outer.averaged():
        return saved, own + [parameter.detach().clone() for parameter in model.parameters()]


def test_a_run_that_was_killed_in_the_middle_of_a_window_goes_on_bitwise(tmp_path: Path) -> None:
    straight = run_ranks(train, 2, RESUMED, WINDOWS)
    with pytest.raises(RuntimeError, match=r"abruptly|another replica"):
        run_ranks(train_until_killed, 2, tmp_path)
    for (saved, weights), (own, shared, _) in zip(run_ranks(go_on, 2, tmp_path), straight):
        assert saved == KILLED_IN - 1
        assert all(torch.equal(a, b) for a, b in zip(weights, own + shared))
