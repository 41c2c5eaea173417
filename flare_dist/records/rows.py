"""The rows of a checkpoint's vectors that a rank holds, whatever number of ranks to a host has saved them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from flare_dist.cuts import Cut
from flare_dist.layout import ParameterLayout

WHOLE = ("buffers",)  # vectors that are not of parameters, and the same on all ranks of a host


class Shard(Protocol):
    """What a rank holds of a model that its host has divided (engines/fsdp.py)."""

    @property
    def number(self) -> int: ...

    @property
    def count(self) -> int: ...

    @property
    def whole(self) -> ParameterLayout: ...

    @property
    def cuts(self) -> tuple[Cut, ...]: ...


def described(shard: Shard | None) -> dict[str, Any]:
    """Return what a rank's file says of its rows; nothing if it holds whole vectors."""
    if shard is None:
        return {}
    return {"shard": {"number": shard.number, "count": shard.count, "cuts": [tuple(cut) for cut in shard.cuts]}}


def as_held(states: Sequence[dict[str, Any]], shard: Shard | None, layout: list[list[Any]]) -> list[dict[str, Any]]:
    """Return what each host has saved in its files, in order, as rows of `shard` (None = whole vectors).

    `layout` describes the whole model.
    """
    saved_by = states[0].get("shard", {"count": 1})["count"]
    if saved_by == (shard.count if shard else 1):
        return [state for state in states if shard is None or _number(state) == shard.number]
    hosts = [states[first : first + saved_by] for first in range(0, len(states), saved_by)]
    shapes = [tuple(shape) for _, shape in layout]
    wanted = shard.cuts if shard else tuple(map(_all_of, shapes))
    return [_host_as_held(host, wanted, shapes) for host in hosts]


def _host_as_held(host: Sequence[dict[str, Any]], wanted: Sequence[Cut], shapes: Sequence[tuple[int, ...]]) -> Any:
    """Return the files of one host as one, with the rows that are wanted."""
    cuts = [_cuts(state, shapes) for state in host]
    kept = {key: value for key, value in host[0].items() if key not in ("server", "clients", "shard")}
    return kept | {key: _joined([state[key] for state in host], cuts, wanted) for key in ("server", "clients")}


def _number(state: dict[str, Any]) -> int:
    return int(state["shard"]["number"]) if "shard" in state else 0


def _all_of(shape: tuple[int, ...]) -> Cut:
    return Cut(0, 0, shape[0] if shape else 1, shape)


def _cuts(state: dict[str, Any], shapes: Sequence[tuple[int, ...]]) -> list[Cut]:
    if "shard" not in state:
        return [_all_of(shape) for shape in shapes]
    return [Cut(dim, start, stop, tuple(shape)) for dim, start, stop, shape in state["shard"]["cuts"]]


def _joined(values: Sequence[Any], cuts: Sequence[Sequence[Cut]], wanted: Sequence[Cut]) -> Any:
    """Join the flat vectors of all shards wherever they are in what was saved, and cut the wanted rows."""
    first = values[0]
    if isinstance(first, dict):
        inner = {key: [value[key] for value in values] for key in first}
        return {key: own[0] if key in WHOLE else _joined(own, cuts, wanted) for key, own in inner.items()}
    if isinstance(first, (list, tuple)):
        return [_joined(own, cuts, wanted) for own in zip(*values)]
    if not isinstance(first, Tensor) or not _are_flat(values, cuts):
        return first
    split = [list(zip(own, value.split([_numel(cut) for cut in own]))) for value, own in zip(values, cuts)]
    rows = [_rows([parts[place] for parts in split], cut) for place, cut in enumerate(wanted)]
    return torch.cat(rows)


def _are_flat(values: Sequence[Tensor], cuts: Sequence[Sequence[Cut]]) -> bool:
    """Tell if these are vectors with an entry for each of the parameters that their shards hold."""
    return all(value.shape == (sum(map(_numel, own)),) for value, own in zip(values, cuts))


def _rows(parts: Sequence[tuple[Cut, Tensor]], wanted: Cut) -> Tensor:
    """Put one parameter together, and return the rows that are wanted of it, flat."""
    whole = torch.empty(wanted.shape, dtype=parts[0][1].dtype)
    for cut, part in parts:
        cut.of(whole).copy_(part.view(cut.own_shape) if whole.dim() else part.squeeze())
    return wanted.of(whole).flatten()


def _numel(cut: Cut) -> int:
    return torch.Size(cut.own_shape).numel() if cut.shape else 1
