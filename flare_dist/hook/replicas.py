"""The replicas of a model that take outer steps together, and what they must have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from flare_dist.comm.collectives import ProcessGroup, gather_objects, rank_and_size, ranks_of
from flare_dist.hook.wrappers import unwrapped

REPLICATE = ("replicate", "dp_replicate")  # names of the dimension of a mesh that goes over replicas


class MeshPlace(NamedTuple):
    """The place of a rank in a mesh of replicas, whose other dimensions together go over the parts of each."""

    group: ProcessGroup  # the ranks that hold the same part of the other replicas
    shard: int  # number of the part
    shards: int
    over_replicas: int  # number of the dimension that goes over replicas


class Replicas(NamedTuple):
    """The ranks that hold the same part of each replica, and what sets this part apart in names of files."""

    group: ProcessGroup | None  # None = all ranks
    suffix: str = "-outer"
    is_first_part: bool = True


def replicas_of(model: nn.Module, mesh: Any, group: ProcessGroup | None, names: Sequence[str]) -> Replicas:
    """Find with whom this rank exchanges; raises ValueError if the mesh, or the model on it, does not fit."""
    replicas = Replicas(group) if mesh is None else _on_mesh(mesh, names)
    rank, size = rank_and_size(replicas.group)
    if rank < 0:
        raise ValueError("outer.process_group: this rank is not of it; let the ranks of a group alone call outer()")
    if size == 1:
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
    inner = unwrapped(model)
    if isinstance(inner, DistributedDataParallel):
        shared = set(ranks_of(inner.process_group)) & set(ranks_of(replicas.group))
        if len(shared) > 1:
            raise ValueError(
                "outer: the model is DistributedDataParallel over several replicas, whose gradients it averages in "
                "every step; give the bare model, or a process_group of the ranks of one replica to it"
            )


def _on_mesh(mesh: Any, names: Sequence[str]) -> Replicas:
    place = place_in(mesh, "outer", names)
    part = f"-shard-{place.shard}-of-{place.shards}" if place.shards > 1 else ""
    return Replicas(place.group, f"-outer{part}", place.shard == 0)


def place_in(mesh: Any, who: str, names: Sequence[str]) -> MeshPlace:
    """Find this rank in a mesh of which one dimension has one of these `names`; raises ValueError if none has."""
    dimensions = tuple(mesh.mesh_dim_names or ())
    over_replicas = [number for number, name in enumerate(dimensions) if name in names]
    if len(over_replicas) != 1:
        raise ValueError(
            f"{who}.mesh: needs one dimension named {' or '.join(names)}, got {', '.join(dimensions) or 'none'}; name "
            "it by init_device_mesh(..., mesh_dim_names=...) or give replicate=[NAME]"
        )
    shard = 0
    shards = 1
    for place in (place for place in range(len(dimensions)) if place not in over_replicas):
        shard = shard * mesh.size(place) + mesh.get_local_rank(place)
        shards *= mesh.size(place)
    return MeshPlace(mesh.get_group(over_replicas[0]), shard, shards, over_replicas[0])


def check_same(settings: Mapping[str, Any], model: nn.Module, replicas: Replicas) -> None:
    """Raise ValueError on all replicas if one has another setting."""
    device = next((parameter.device for parameter in model.parameters()), None)
    first, *others = gather_objects(dict(settings), replicas.group, device)
    for number, theirs in enumerate(others, start=1):
        for name in sorted(first.keys() | theirs.keys()):
            if first.get(name) != theirs.get(name):
                raise ValueError(
                    f"outer.{name}: must be the same on all replicas, got {first.get(name)} on replica 0 and "
                    f"{theirs.get(name)} on replica {number}; start all of them alike"
                )


def held_by_any(own: Mapping[str, Any] | None, group: ProcessGroup | None, device: Any) -> Mapping[str, Any] | None:
    """Return what all replicas have in common, from one that has it if this one's file is lost; they call together."""
    if all(gather_objects(own is not None, group, device)):
        return own
    return next((one for one in gather_objects(own, group, device) if one is not None), None)
