"""The part of a checkpoint's vectors that a rank holds, whatever number of ranks to a host has saved them.

Each rank's file says which slices of the parameters its vectors are made of: rows (FSDP2) or flat slices (ZeRO).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from flare_dist.compression.bits import set_bits, unpack_bits
from flare_dist.cuts import Cut, ModelShard, put_together

log = logging.getLogger(__name__)

WHOLE = ("buffers",)  # vectors that are not of parameters, and the same on all ranks of a host


def described(shard: ModelShard | None) -> dict[str, Any]:
    """Return what a rank's file says of its slices; nothing if it holds whole vectors."""
    if shard is None:
        return {}
    cuts = [tuple(cut) for cut in shard.cuts]
    return {"shard": {"number": shard.number, "count": shard.count, "kind": shard.kind, "cuts": cuts}}


def as_held(
    states: Sequence[dict[str, Any]], shard: ModelShard | None, layout: list[list[Any]]
) -> list[dict[str, Any]]:
    """Return what each host has saved in its files, in order, as slices of `shard` (None = whole vectors).

    `layout` describes the whole model.
    """
    saved_by = states[0].get("shard", {"count": 1})["count"]
    hosts = [states[first : first + saved_by] for first in range(0, len(states), saved_by)]
    shapes = [tuple(shape) for _, shape in layout]
    wanted = list(shard.cuts if shard else map(Cut.whole, shapes))
    number = shard.number if shard else 0
    if saved_by == (shard.count if shard else 1) and _cuts(states[number], shapes) == wanted:
        return [host[number] for host in hosts]
    log.info("checkpoint: it holds %s, this run takes %s", _in_words(states[0]), _in_words(described(shard)))
    return [_host_as_held(host, wanted, shapes) for host in hosts]


def _host_as_held(host: Sequence[dict[str, Any]], wanted: Sequence[Cut], shapes: Sequence[tuple[int, ...]]) -> Any:
    """Return the files of one host as one, with the slices that are wanted."""
    cuts = [_cuts(state, shapes) for state in host]
    kept = {key: value for key, value in host[0].items() if key not in ("server", "clients", "shard")}
    return kept | {key: _joined([state[key] for state in host], cuts, wanted) for key in ("server", "clients")}


def _in_words(state: Mapping[str, Any]) -> str:
    """Name the layout of a rank's vectors; checkpoints that do not name it hold rows."""
    if "shard" not in state:
        return "whole vectors"
    return f"{state['shard'].get('kind', 'rows')} of {state['shard']['count']} ranks a host"


def _cuts(state: dict[str, Any], shapes: Sequence[tuple[int, ...]]) -> list[Cut]:
    if "shard" not in state:
        return [Cut.whole(shape) for shape in shapes]
    return [Cut(dim, start, stop, tuple(shape)) for dim, start, stop, shape in state["shard"]["cuts"]]


def _joined(values: Sequence[Any], cuts: Sequence[Sequence[Cut]], wanted: Sequence[Cut]) -> Any:
    """Join the flat vectors of all shards wherever they are in what was saved, and cut the wanted slices."""
    first = values[0]
    if isinstance(first, dict):
        inner = {key: [value[key] for value in values] for key in first}
        return {key: own[0] if key in WHOLE else _joined(own, cuts, wanted) for key, own in inner.items()}
    if isinstance(first, (list, tuple)):
        return [_joined(own, cuts, wanted) for own in zip(*values)]
    if not isinstance(first, Tensor):
        return first
    if first.dtype == torch.uint8 and _are_bits(values, cuts):  # a mask
        masks = [unpack_bits(bits)[:numel] for bits, numel in zip(values, _numels(cuts))]
        joined = _joined(masks, cuts, wanted)
        return set_bits(joined.nonzero().squeeze(1), joined.numel())
    if not _are_flat(values, cuts):
        return first
    split = [list(zip(own, value.split([cut.numel for cut in own]))) for value, own in zip(values, cuts)]
    return torch.cat([cut.of(put_together(parts)).flatten() for cut, parts in zip(wanted, zip(*split))])


def _are_flat(values: Sequence[Tensor], cuts: Sequence[Sequence[Cut]]) -> bool:
    """Tell if these are vectors with an entry for each of the parameters that their shards hold."""
    return all(value.shape == (numel,) for value, numel in zip(values, _numels(cuts)))


def _are_bits(values: Sequence[Tensor], cuts: Sequence[Sequence[Cut]]) -> bool:
    """Tell if these have a bit for each of the entries of such vectors."""
    return all(value.shape == (-(-numel // 8),) for value, numel in zip(values, _numels(cuts)))


def _numels(cuts: Sequence[Sequence[Cut]]) -> list[int]:
    """Count the entries of each shard's flat vectors."""
    return [sum(cut.numel for cut in own) for own in cuts]
