"""The rows of each weight that a rank holds of its replica, and memories that other shards or replicas have saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from flare_dist.comm.collectives import ProcessGroup
from flare_dist.cuts import Cut, put_together
from flare_dist.hook.files import read_file

T = TypeVar("T")
Memory = dict[str, dict[str, Tensor]]  # by name of parameter and kind of vector


@dataclass(frozen=True)
class Shard:
    """The place of a rank among those that train a model together, and its slice of each weight."""

    replica: int
    replicas: int
    number: int
    count: int  # of shards in a replica
    group: ProcessGroup | None  # the ranks of all replicas, which save and load together
    cuts: Mapping[str, Cut]
    mesh: Any  # DeviceMesh of two dimensions
    over_replicas: int  # which of them goes over replicas

    def placements(self, over_replicas: T, over_shards: T) -> list[T]:
        """Order what holds along each dimension of the mesh as the mesh does."""
        return [over_replicas, over_shards] if self.over_replicas == 0 else [over_shards, over_replicas]

    def saved(self) -> dict[str, Any]:
        """Return what a file must tell of it."""
        cuts = {name: tuple(cut) for name, cut in self.cuts.items()}
        return {"shard": {"replica": self.replica, "place": self.place, "cuts": cuts}}

    @property
    def place(self) -> tuple[int, int, int]:
        """Return the number of replicas, of shards, and the shard's own number."""
        return self.replicas, self.count, self.number


def replicas_in(saved: Sequence[Mapping[str, Any]]) -> int:
    """Return the number of replicas that have saved these files; a rank of DDP is one."""
    first = saved[0]
    return int(first["shard"]["place"][0]) if first.get("shard") else int(first.get("ranks", len(saved)))


def is_of_shard(shard: Shard | None, path: Path) -> bool:
    """Tell if a file holds the memory of just this shard's slices; of whole parameters if there is none."""
    saved = read_file(path, mmap=True).get("shard")
    if shard is None or not saved:
        return shard is None and not saved
    cuts = {name: Cut(*cut) for name, cut in saved["cuts"].items()}
    return saved["place"] == shard.place and all(cuts[name] == shard.cuts.get(name, cuts[name]) for name in cuts)


def joined(saved: Sequence[Mapping[str, Any]], cuts: Mapping[str, Cut] | None) -> dict[int, Memory]:
    """Join the shards in these files by replica, and cut what is wanted of each; a missing shard is zero.

    `cuts` are those of this rank; None takes whole weights.
    """
    parts: dict[int, dict[str, dict[str, list[tuple[Cut, Tensor]]]]] = {}
    for number, one in enumerate(saved):
        shard = one.get("shard")
        of_replica = parts.setdefault(shard["replica"] if shard else number, {})
        for name, vectors in one["memory"].items():
            for kind, vector in vectors.items():
                whole = Cut.whole(tuple(vector.shape))  # also of one number, which each shard has
                cut = Cut(*shard["cuts"][name]) if shard and vector.dim() else whole
                of_replica.setdefault(name, {}).setdefault(kind, []).append((cut, vector))
    return {replica: _cut(of_replica, cuts) for replica, of_replica in parts.items()}


def _cut(parts: dict[str, dict[str, list[tuple[Cut, Tensor]]]], cuts: Mapping[str, Cut] | None) -> Memory:
    """Put the vectors of one replica together, and cut what is wanted."""
    memory: Memory = {}
    for name, own in parts.items():
        if cuts is None or name in cuts:
            wholes = {kind: put_together(pieces) for kind, pieces in own.items()}
            memory[name] = {
                kind: whole if cuts is None else cuts[name].of(whole).clone() for kind, whole in wholes.items()
            }
    return memory


def mean_of(memories: Sequence[Memory], count: int, fed_back: Sequence[str]) -> Memory:
    """Take the mean of each vector over `count` replicas; one that lacks a parameter, or is lost, counts as zero.

    It does not count if it is none of those that are `fed_back`: a preconditioner's estimates are nobody's share.
    """
    mean: Memory = {}
    for memory in memories:
        for name, own in memory.items():
            for kind, vector in own.items():
                total = mean.setdefault(name, {}).setdefault(kind, torch.zeros_like(vector))
                replicas = count if kind in fed_back else sum(name in other for other in memories)
                total.add_(vector, alpha=1 / replicas)
    return mean
