"""Models that FSDP2 shards on a mesh of replicas and shards, for the tests of its hook."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

from flare_dist.comm.world import World
from tests.helpers.hook import batch, net


def mesh_of(world: World, shards: int) -> DeviceMesh:
    """A mesh of as many replicas of `shards` ranks as there are."""
    return init_device_mesh("cpu", (world.size // shards, shards), mesh_dim_names=("replicate", "shard"))


def sharded(mesh: Any, model: nn.Module | None = None, **options: Any) -> Any:
    """The net of the hook's tests, or another one, sharded as a whole and by layer, or by its `blocks`."""
    whole = net() if model is None else model
    layers = [whole.get_submodule(name) for name in getattr(whole, "blocks", ())] or whole.children()
    for part in dict.fromkeys((*layers, whole)):
        fully_shard(part, mesh=mesh, **options)
    return whole


def backward(model: nn.Module, step: int, rank: int) -> None:
    inputs, labels = batch(rank, step)
    F.cross_entropy(model(inputs), labels).backward()


def train(model: nn.Module, steps: Iterable[int], rank: int, lr: float = 0.05) -> None:
    """Steps of SGD, which divides nothing by tiny numbers."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for step in steps:
        backward(model, step, rank)
        optimizer.step()
        optimizer.zero_grad()


def whole(model: nn.Module) -> Tensor:
    """All weights of a sharded model, in one vector; all ranks call it."""
    parameters: list[Any] = list(model.parameters())
    return torch.cat([parameter.full_tensor().detach().flatten() for parameter in parameters])


def equal(vectors: Sequence[Tensor]) -> bool:
    return all(torch.equal(vectors[0], other) for other in vectors[1:])
