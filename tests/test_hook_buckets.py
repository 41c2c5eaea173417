"""Whatever DDP does with its buckets, the result and the memory are the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from flare_dist.comm.world import World
from tests.helpers.hook import assert_same_memory, batch, net, train, with_hook
from tests.ranks import run_ranks


def test_bucket_sizes_and_ddp_s_ways_of_forming_them_change_nothing() -> None:
    settings = {"density": 0.05, "dense_below": 4}
    expected = run_ranks(train, 2, settings)
    for ddp in ({"bucket_cap_mb": 0.001}, {"static_graph": True}, {"find_unused_parameters": True}):
        for (parameters, state), (same, kept) in zip(run_ranks(train, 2, settings, ddp), expected):
            assert torch.equal(parameters, same)
            assert_same_memory(state, kept)


def buckets_formed_anew(world: World) -> list[set[str]]:
    """The names whose memory is in no bucket, after each of three steps with small buckets."""
    wrapped, state = with_hook(net(), {"bucket_cap_mb": 0.001}, density=0.05)
    left = []
    for step in range(3):
        inputs, labels = batch(world.rank, step)
        F.cross_entropy(wrapped(inputs), labels).backward()
        left.append(set(state.memory.waiting))
    assert len(state.state_dict()["memory"]) == len(list(wrapped.parameters()))
    return left


def test_memory_is_held_once_when_buckets_are_formed_anew() -> None:
    for left in run_ranks(buckets_formed_anew, 2):
        assert left == [set(), set(), set()]


@pytest.mark.parametrize("settings", [{"dense_below": 40}, {"dense_below": 10_000}, {"sparsifier": "randk"}])
def test_small_tensors_and_random_ones_do_not_depend_on_buckets(settings: dict[str, Any]) -> None:
    """With small buckets some hold nothing but biases, which are sent whole."""
    one, many = (run_ranks(train, 2, {"density": 0.05, **settings}, ddp) for ddp in (None, {"bucket_cap_mb": 1e-4}))
    for (parameters, memory), (expected, expected_memory) in zip(many, one):
        assert torch.equal(parameters, expected)
        assert_same_memory(memory, expected_memory)


def test_selection_in_blocks_is_that_of_tensors_where_they_fit_and_knows_no_buckets() -> None:
    whole, blocks = ({"density": 0.05, "scope": "block", "block": block} for block in (2000, 16))
    (in_tensors, _), _ = run_ranks(train, 2, {"density": 0.05})
    (in_large_blocks, _), _ = run_ranks(train, 2, whole)
    assert torch.equal(in_large_blocks, in_tensors)
    (in_blocks, _), _ = run_ranks(train, 2, blocks)
    (other_buckets, _), _ = run_ranks(train, 2, blocks, {"bucket_cap_mb": 0.001})
    assert torch.equal(in_blocks, other_buckets)
    at_random = blocks | {"value_codec": "int8", "error_feedback": "none", "dense_below": 0}
    (rounded, _), _ = run_ranks(train, 2, at_random)
    (other_buckets, _), _ = run_ranks(train, 2, at_random, {"bucket_cap_mb": 0.001})
    assert torch.equal(rounded, other_buckets)
    assert not torch.equal(in_blocks, in_tensors)
