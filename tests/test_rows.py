"""Vectors move between the slices of any two hosts to the bit, also between rows and flat slices."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from flare_dist.cuts import FLAT, Cut, ModelShard
from flare_dist.layout import ParameterLayout
from flare_dist.records.rows import as_held, described

SHAPES = ((3, 5), (7,), (2, 2, 2), (1,))
LAYOUT = ParameterLayout.of((str(number), torch.empty(shape)) for number, shape in enumerate(SHAPES))


def rows(shards: int) -> list[list[Cut]]:
    """The rows of FSDP2."""
    return [[Cut.of_shard(shape, shard, shards) for shape in SHAPES] for shard in range(shards)]


def of_each(shards: int) -> list[list[Cut]]:
    """The slices of ZeRO 3: each parameter in equal pieces, the last ones shorter or empty."""
    cuts = []
    for shard in range(shards):
        flat = [Cut.of_shard((entry.numel,), shard, shards) for entry in LAYOUT.entries]
        cuts.append([Cut(FLAT, own.start, own.stop, entry.shape) for own, entry in zip(flat, LAYOUT.entries)])
    return cuts


def of_all(shards: int) -> list[list[Cut]]:
    """The slices of ZeRO 1 and 2: one piece of all parameters together."""
    each = -(-LAYOUT.total // shards)
    cuts = []
    for first in range(0, each * shards, each):
        spans = [(min(max(first, e.offset), e.end), min(max(first + each, e.offset), e.end)) for e in LAYOUT.entries]
        cuts.append([Cut(FLAT, a - e.offset, b - e.offset, e.shape) for (a, b), e in zip(spans, LAYOUT.entries)])
    return cuts


HOSTS = {
    "1": None,
    "rows 2": rows(2),
    "rows 4": rows(4),
    "each 2": of_each(2),
    "each 3": of_each(3),
    "all 2": of_all(2),
}


def held(cuts: list[list[Cut]] | None, vector: Tensor) -> list[tuple[ModelShard | None, Tensor]]:
    """What each rank holds of a vector of the whole model."""
    if cuts is None:
        return [(None, vector)]
    named = dict(LAYOUT.views(vector)).values()
    shards = [ModelShard(number, len(cuts), LAYOUT, tuple(own)) for number, own in enumerate(cuts)]
    return [(s, torch.cat([cut.of(part).flatten() for cut, part in zip(s.cuts, named)])) for s in shards]


def saved(cuts: list[list[Cut]] | None, vectors: list[Tensor]) -> list[dict[str, Any]]:
    """The files of two hosts, the second of which has no server."""
    states = []
    for host, vector in enumerate(vectors):
        for shard, own in held(cuts, vector):
            server = {"parameters": own, "buffers": torch.ones(2), "step": 3} if host == 0 else {}
            states.append({"server": server, "clients": {host: {"residual": own}}, **described(shard)})
    return states


@pytest.mark.parametrize(("before", "after"), [*itertools.product(HOSTS, HOSTS)])
def test_vectors_move_between_hosts_to_the_bit(before: str, after: str) -> None:
    vectors = [torch.randn(LAYOUT.total) for _ in range(2)]
    described_layout: Any = LAYOUT.describe()
    for number, (shard, expected) in enumerate(held(HOSTS[after], vectors[0])):
        found = as_held(saved(HOSTS[before], vectors), shard, described_layout)
        assert torch.equal(found[0]["server"]["parameters"], expected)
        assert torch.equal(found[0]["server"]["buffers"], torch.ones(2))
        assert found[0]["server"]["step"] == 3
        for host, state in enumerate(found):
            assert torch.equal(state["clients"][host]["residual"], held(HOSTS[after], vectors[host])[number][1])


def test_files_say_which_layout_they_have() -> None:
    kinds = {
        name: [described(shard).get("shard", {}).get("kind") for shard, _ in held(cuts, torch.zeros(LAYOUT.total))]
        for name, cuts in HOSTS.items()
    }
    assert kinds["1"] == [None]
    assert set(kinds["rows 4"]) == {"rows"}
    assert set(kinds["each 3"]) == set(kinds["all 2"]) == {"flat slices"}
