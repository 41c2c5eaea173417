"""The replicas of a model that take outer steps together, and what they must have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from flare_dist.comm.collectives import ProcessGroup, gather_objects, object_from, rank_and_size, ranks_of
from flare_dist.cuts import Cut
from flare_dist.hook.wrappers import reshard, sharded_modules, unwrapped

REPLICATE = ("replicate", "dp_replicate")  # names of the dimension of a mesh that goes over replicas
_DEEPSPEED_MARKS = ("_hp_mapping", "ds_id")  # of parameters at ZeRO 1 and 2, and at 3


class MeshPlace(NamedTuple):
    """The place of a rank in a mesh of replicas, whose other dimensions together go over the parts of each."""

    group: ProcessGroup  # the ranks that hold the same part of the other replicas
    shard: int  # number of the part
    shards: int
    over_replicas: int  # number of the dimension that goes over replicas
    ranks: frozenset[int]  # of this replica


class Replicas(NamedTuple):
    """The ranks that hold the same part of each replica, and what sets this part apart in names of files."""

    group: ProcessGroup | None  # None = all ranks
    suffix: str = "-outer"
    is_first_part: bool = True


def replicas_of(model: nn.Module, mesh: Any, group: ProcessGroup | None, names: Sequence[str]) -> Replicas:
    """Find with whom this rank exchanges; raises ValueError if the mesh, or the model on it, does not fit."""
    reshard(sharded_modules(model))  # so that its parameters are the sharded ones
    place = None if mesh is None else place_in(mesh, "outer", names)
    replicas = Replicas(group) if place is None else _on_mesh(place)
    rank, size = rank_and_size(replicas.group)
    if rank < 0:
        raise ValueError("outer.process_group: this rank is not of it; let the ranks of a group alone call outer()")
    if size == 1:
        raise ValueError(
            "outer: one replica has nobody to exchange with; start several ranks, by torchrun --nproc_per_node for "
            "example, or leave it out"
        )
    _check_engine(model)
    _check_shards(model, place, names)
    _check_ddp(model, replicas)
    return replicas


def _check_engine(model: nn.Module) -> None:
    """Raise ValueError for a model whose weights are copies of what an engine steps."""
    is_engine = any(kind.__name__ == "DeepSpeedEngine" for kind in type(model).__mro__)
    is_copy = any(hasattr(each, mark) for each in model.parameters() for mark in _DEEPSPEED_MARKS)
    if is_engine or is_copy:
        raise ValueError(
            "outer: DeepSpeed overwrites the model's weights by its own copies, got a model of its engine; use "
            "DistributedDataParallel or fully_shard inside a replica, or attach(engine) for an exchange in every step"
        )


def _check_shards(model: nn.Module, place: MeshPlace | None, names: Sequence[str]) -> None:
    """Raise ValueError for a model that is not sharded over the ranks of its replica, and over these alone."""
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise ValueError(
            "outer: FSDP1 shards one flat vector without the bounds of its parameters, got FullyShardedDataParallel; "
            "shard the model by fully_shard (FSDP2)"
        )
    parameters = dict(model.named_parameters())
    sharded: dict[str, Any] = {name: each for name, each in parameters.items() if hasattr(each, "to_local")}
    if sharded and place is None:
        raise ValueError("outer.mesh: the model is sharded, got no mesh; give the DeviceMesh that it was made with")
    for parameter in sharded.values():
        _check_mesh(parameter.device_mesh, place, names)
    whole = [name for name, each in parameters.items() if each.requires_grad and name not in sharded]
    if place is not None and place.shards > 1 and whole and not isinstance(unwrapped(model), DistributedDataParallel):
        raise ValueError(
            f"outer.mesh: a replica has {place.shards} ranks, which would train {whole[0]} each on its own, got it not "
            'sharded; call fully_shard(model, mesh=mesh["shard"]) on the root module as well, or '
            "DistributedDataParallel over the ranks of a replica"
        )


def check_rows(model: nn.Module, fragments: int) -> None:
    """Raise ValueError, on all ranks alike, if there is a shard with rows of fewer trained weights than fragments."""
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    held = sum(_is_on_each_shard(each) for each in trained.values())
    if trained and not held:
        name, weight = next(iter(trained.items()))
        raise ValueError(
            f"outer: each rank needs rows of some trained weight, got {name} of shape {tuple(weight.shape)} and others "
            "on more shards than they have rows; shard a replica over fewer ranks, or train a longer weight, too"
        )
    if held < fragments and trained:
        raise ValueError(
            f"outer.fragments: each needs a tensor of its own, got {fragments} for {held} tensors; choose fewer"
        )


def _is_on_each_shard(parameter: Any) -> bool:
    """Tell if each rank of a replica has rows of it, if `torch.chunk` has divided them."""
    dimensions = [each.dim for each in getattr(parameter, "placements", ()) if each.is_shard()]
    if not dimensions:
        return True
    shards = parameter.device_mesh.size()
    last = Cut.of_shard(tuple(parameter.shape), shards - 1, shards, dimensions[0])
    return last.numel > 0


def _check_mesh(mesh: Any, place: MeshPlace | None, names: Sequence[str]) -> None:
    """Raise ValueError if a parameter is sharded over replicas, or over other ranks than those of its own."""
    crossing = set(mesh.mesh_dim_names or ()) & set(names)
    if crossing:
        raise ValueError(
            f"outer.mesh: the model is sharded on a mesh with {crossing.pop()}, over which every step averages its "
            'gradients; shard it by fully_shard(part, mesh=mesh["shard"])'
        )
    ranks = mesh.mesh.flatten().tolist()
    if place is not None and not place.ranks.issuperset(ranks):
        raise ValueError(
            f"outer.mesh: the model is sharded over the ranks {ranks}, and a replica of the mesh is "
            f"{sorted(place.ranks)}; give the whole mesh that fully_shard was given a part of"
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


def _on_mesh(place: MeshPlace) -> Replicas:
    part = f"-shard-{place.shard}-of-{place.shards}" if place.shards > 1 else ""
    return Replicas(place.group, f"-outer{part}", place.shard == 0)


def place_in(mesh: Any, who: str, names: Sequence[str]) -> MeshPlace:
    """Find this rank in a mesh of which one dimension has one of these `names`; raises ValueError if none has."""
    if not hasattr(mesh, "mesh_dim_names"):
        raise ValueError(f"{who}.mesh: must be a DeviceMesh, got {type(mesh).__name__}; make one by init_device_mesh")
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
    own = mesh.mesh.select(over_replicas[0], mesh.get_local_rank(over_replicas[0])).flatten().tolist()
    return MeshPlace(mesh.get_group(over_replicas[0]), shard, shards, over_replicas[0], frozenset(own))


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
    has_own = gather_objects(own is not None, group, device)
    if all(has_own) or not any(has_own):
        return own
    return object_from(has_own.index(True), own, group, device)
