"""The memory of a sharded model's hook as DTensors, for checkpoints of torch.distributed.checkpoint.

    dcp.save({"model": ..., "hook": flare_dist.hook_tensors(state)}, checkpoint_id=directory)
    flare_dist.load_hook_tensors(state, directory, key="hook")

A plain tensor comes back as the first rank's on every rank (pytorch#120356), so each vector is one DTensor of shape
(replicas, *parameter), whose rows of dimension 0 are the replicas' own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.tensor import DTensor, Placement, Replicate
from torch.distributed.tensor import Shard as Split

from flare_dist.hook.restore import rescale_second_moments
from flare_dist.hook.shards import Memory, Shard, mean_of
from flare_dist.hook.state import SparseHookState

STEP = "step"
RULE = "rule"


def hook_tensors(state: SparseHookState) -> dict[str, Any]:
    """Return the memory of `attach(model, mesh=...)` as DTensors by kind and parameter, the step and the rule; copies.

    All ranks call it between steps. Raises ValueError for the hook of a model that is not sharded.
    """
    shard = _sharded(state)
    saved = state.state_dict()
    tensors: dict[str, Any] = {STEP: torch.tensor(saved[STEP]), RULE: state.rule_name}
    for kind, name in _vectors(state):
        shape = state.shapes[name]
        own = saved["memory"].get(name, {})
        local = own.get(kind, torch.zeros(_own_shape(state, name, kind, shape))).unsqueeze(0)
        whole = (shard.replicas, *_shape(state, kind, shape))
        tensors[f"{kind}.{name}"] = _dtensor(shard, name, local, Split(0), whole)
    return tensors


def load_hook_tensors(state: SparseHookState, checkpoint_id: str | Path, key: str = "hook") -> None:
    """Restore what `hook_tensors` gave and dcp.save wrote under `key`, on any number of shards and replicas.

    Replicas of another number each take the mean over those that saved. All ranks call it. Raises ValueError if the
    checkpoint holds no such memory.
    """
    shard = _sharded(state)
    saved_by = _saved_by(state, checkpoint_id, key)
    is_own = saved_by == shard.replicas  # each replica goes on with its own memory, else all with the mean
    over_replicas: Placement = Split(0) if is_own else Replicate()
    rows = 1 if is_own else saved_by
    wanted: dict[str, Any] = {STEP: torch.tensor(0), RULE: ""}
    for kind, name in _vectors(state):
        shape = state.shapes[name]
        local = torch.zeros(rows, *_own_shape(state, name, kind, shape))
        whole = (saved_by, *_shape(state, kind, shape))
        wanted[f"{kind}.{name}"] = _dtensor(shard, name, local, over_replicas, whole)
    dcp.load({key: wanted}, checkpoint_id=checkpoint_id)
    by_replica: list[Memory] = [{} for _ in range(rows)]
    for kind, name in _vectors(state):
        for memory, vector in zip(by_replica, wanted[f"{kind}.{name}"].to_local().unbind()):
            if name in shard.cuts:
                memory.setdefault(name, {})[kind] = vector
    memory = by_replica[0] if is_own else mean_of(by_replica, saved_by, state.fed_back)
    rescale_second_moments(memory, saved_by, shard.replicas)
    own = {"step": int(wanted[STEP]), "rule": wanted[RULE], "memory": memory, "shapes": state.shapes}
    state.load_state_dict(own)


def _vectors(state: SparseHookState) -> list[tuple[str, str]]:
    """List what is remembered: every kind of each parameter."""
    return [(kind, name) for name in state.shapes for kind in state.state_names]


def _saved_by(state: SparseHookState, checkpoint_id: str | Path, key: str) -> int:
    """Return how many replicas saved; raises ValueError if the checkpoint lacks a vector of this state's."""
    found: dict[str, Any] = dcp.FileSystemReader(checkpoint_id).read_metadata().state_dict_metadata
    names = [f"{kind}.{name}" for kind, name in _vectors(state)]
    for name in (*names, STEP, RULE):
        if f"{key}.{name}" not in found:
            raise ValueError(
                f"{checkpoint_id}: holds no {key}.{name}; save hook_tensors(state) of the same model and settings "
                f"under {key!r}"
            )
    return int(found[f"{key}.{names[0]}"].size[0]) if names else _sharded(state).replicas


def _sharded(state: SparseHookState) -> Shard:
    if state.shard is None:
        raise ValueError(
            "hook_tensors: the model is not sharded, so each rank remembers whole parameters; use save_hook_state"
        )
    return state.shard


def _own_shape(state: SparseHookState, name: str, kind: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of this rank's part of a vector, of no rows if it holds none; () for one number."""
    if kind in state.preconditioning.record.counts:
        return ()
    assert state.shard is not None
    cut = state.shard.cuts.get(name)
    return cut.own_shape if cut else (0, *shape[1:])


def _shape(state: SparseHookState, kind: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return () if kind in state.preconditioning.record.counts else shape


def _dtensor(shard: Shard, name: str, local: Tensor, over_replicas: Placement, shape: tuple[int, ...]) -> DTensor:
    """Wrap this rank's part of a vector, whose dimension 0 goes over replicas; one number is all shards' own."""
    cut = shard.cuts.get(name)
    over_shards = Split(1 + (cut.dim if cut else 0)) if len(shape) > 1 else Replicate()
    placements = shard.placements(over_replicas, over_shards)
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(local, shard.mesh, placements, run_check=False, shape=torch.Size(shape), stride=stride)
