"""A replica that takes fewer steps than the others, and lives, is named when the timeout of its group is over."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

import flare_dist
from flare_dist.comm.world import World
from tests.ranks import run_ranks
from tests.test_outer import batch, net

SECONDS = 2.0  # of a collective
STEPS = 6  # of the first replica; the second takes half as many


def take_steps(model: nn.Module, world: World, after: Any) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(STEPS // (1 + world.rank)):
        inputs, labels = batch(step, world.rank)
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        after()


def meeting(delay: int) -> Any:
    def train(world: World, group: Any) -> None:
        model = net()
        outer = flare_dist.outer(model, process_group=group, every=1 + delay, delay=delay)
        take_steps(model, world, outer.step)

    return train


def sharded(world: World, group: Any) -> None:
    alone: Any = [dist.new_group([rank]) for rank in range(world.size)][world.rank]
    ranks = torch.arange(world.size).unsqueeze(1)
    mesh: Any = DeviceMesh.from_group([group, alone], "cpu", mesh=ranks, mesh_dim_names=("replicate", "shard"))
    model: Any = fully_shard(net(), mesh=mesh["shard"])
    flare_dist.attach(model, mesh=mesh, density=0.1)
    take_steps(model, world, lambda: None)


WAYS = {"outer steps": meeting(0), "delayed outer steps": meeting(1), "shards": sharded}


def wait(world: World) -> dict[str, tuple[str, float]]:
    """What the first replica says of each way, and after how many seconds."""
    told = {}
    for name, train in WAYS.items():
        group = dist.new_group(timeout=timedelta(seconds=SECONDS))
        began = time.monotonic()
        if world.rank == 0:
            with pytest.raises(RuntimeError) as error:
                train(world, group)
            told[name] = str(error.value), time.monotonic() - began
        else:
            train(world, group)
            time.sleep(1.5 * SECONDS)
    return told


def test_another_number_of_batches_is_named_after_the_timeout() -> None:
    told = run_ranks(wait, 2)[0]
    for name, who in (("outer steps", "outer"), ("delayed outer steps", "outer"), ("shards", "attach")):
        words, seconds = told[name]
        assert words.startswith(f"{who}: another replica "), name
        assert "every replica must take equally many steps, so give each as many batches" in words
        assert SECONDS / 2 < seconds < 2 * SECONDS
