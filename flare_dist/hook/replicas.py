"""The replicas of a model that take outer steps together, and the weights that one rank holds of its replica."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from flare_dist.comm.collectives import ProcessGroup, broadcast_from_first, gather_objects, rank_and_size, ranks_of


class Replicas(NamedTuple):
    """The ranks that hold the same part of each replica, and what sets this part apart in names of files."""

    group: ProcessGroup | None  # None = all ranks
    suffix: str = ""


def replicas_of(model: nn.Module, mesh: Any, group: ProcessGroup | None, names: Sequence[str]) -> Replicas:
    """Find with whom this rank exchanges; raises ValueError if the mesh, or the model on it, does not fit."""
    replicas = Replicas(group) if mesh is None else _on_mesh(mesh, names)
    if rank_and_size(replicas.group)[1] == 1:
        raise ValueError(
            "outer: one replica has nobody to exchange with; start several ranks, by torchrun --nproc_per_node for "
            "example, or leave it out"
        )
    _check_shards(model, mesh, names)
    _check_ddp(model, replicas)
    return replicas


def _check_shards(model: nn.Module, mesh: Any, names: Sequence[str]) -> None:
    """Raise ValueError for a sharded model without a mesh, or one whose shards cross the replicas."""
    sharded: list[Any] = [parameter for parameter in model.parameters() if hasattr(parameter, "to_local")]
    if sharded and mesh is None:
        raise ValueError("outer.mesh: the model is sharded, got no mesh; give the DeviceMesh that it was made with")
    for parameter in sharded:
        crossing = set(parameter.device_mesh.mesh_dim_names or ()) & set(names)
        if crossing:
            raise ValueError(
                f"outer.mesh: the model is sharded on a mesh with {crossing.pop()}, over which every step averages its "
                'gradients; shard it by fully_shard(part, mesh=mesh["shard"])'
            )


def _check_ddp(model: nn.Module, replicas: Replicas) -> None:
    """Raise ValueError for a model whose gradients DistributedDataParallel averages over several replicas."""
    inner = model._orig_mod if hasattr(model, "_orig_mod") else model
    if isinstance(inner, DistributedDataParallel):
        shared = set(ranks_of(inner.process_group)) & set(ranks_of(replicas.group))
        if len(shared) > 1:
            raise ValueError(
                "outer: the model is DistributedDataParallel over several replicas, whose gradients it averages in "
                "every step; give the bare model, or a process_group of the ranks of one replica to it"
            )


def _on_mesh(mesh: Any, names: Sequence[str]) -> Replicas:
    dimensions = tuple(mesh.mesh_dim_names or ())
    found = [name for name in names if name in dimensions]
    if len(found) != 1:
        raise ValueError(
            f"outer.mesh: needs one dimension named {' or '.join(names)}, got {', '.join(dimensions) or 'none'}; name "
            "it by init_device_mesh(..., mesh_dim_names=...) or give replicate=[NAME]"
        )
    others = [place for place, name in enumerate(dimensions) if name != found[0]]
    shards, shard = 1, 0
    for place in others:
        shards *= mesh.size(place)
        shard = shard * mesh.size(place) + mesh.get_local_rank(place)
    return Replicas(mesh.get_group(found[0]), f"-shard-{shard}-of-{shards}" if shards > 1 else "")


@torch.no_grad()
def local_weights(model: nn.Module, replicas: Replicas) -> dict[str, Tensor]:
    """Return the trained weights of this rank by name, or its shards, made those of the first replica.

    They share memory with the model. Raises ValueError on all replicas if they do not have the same.
    """
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    weights = {_plain(name): _local(parameter) for name, parameter in named.items()}
    weights = {name: tensor for name, tensor in weights.items() if tensor.numel()}  # a short tensor has empty shards
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    device = next((tensor.device for tensor in weights.values()), None)
    for other, theirs in enumerate(gather_objects(shapes, replicas.group, device)):
        if theirs != shapes:
            different = sorted({*theirs.items()} ^ {*shapes.items()})[0][0]
            raise ValueError(f"outer: replica {other} has another {different}; build the same model on all of them")
    if not weights:
        raise ValueError("outer: the model has no parameters with requires_grad; there is nothing to exchange")
    for tensor in weights.values():
        broadcast_from_first(tensor, replicas.group)
    return weights


def _local(parameter: Any) -> Tensor:
    local: Tensor = parameter.to_local() if hasattr(parameter, "to_local") else parameter
    return local.detach()


def _plain(name: str) -> str:
    """Drop what wrappers put before and into the name of a parameter."""
    return name.replace("_orig_mod.", "").removeprefix("module.")
