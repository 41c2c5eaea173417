"""Loaded sets of files are whole, or the missing ranks are named; strange files are refused."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import flare_dist
from flare_dist.comm.world import World
from flare_dist.cuts import Cut
from flare_dist.hook.shards import Shard, is_of_shard
from tests.helpers.hook import assert_same_memory, attached, backward, net, said_by
from tests.ranks import run_ranks

RANKS = 2


NO_MEMORIES: dict[str, Any] = {
    "list": [1],
    "one vector": {"first.weight": torch.zeros(3)},
    "text": {"first.weight": {"residual": "x"}},
}


def story_of_loading(world: World, directory: str) -> dict[str, Any]:
    """What is loaded, and what is refused, in directories that hold more, less or something else."""
    told: dict[str, Any] = {}
    place = Path(directory)
    ddp, hook = attached()

    def load(name: str, number: int | None = None, **settings: Any) -> tuple[list[str], dict[str, Any]]:
        _, fresh = attached(**settings)
        told[name] = said_by(lambda: flare_dist.load_hook_state(fresh, place / "saves", step=number))
        return told[name], fresh.state_dict()

    backward(ddp, world.rank, range(2))
    flare_dist.save_hook_state(hook, place / "saves")
    first = hook.state_dict()
    world.wait_for_all()
    said, loaded = load("whole")
    assert not said
    assert_same_memory(loaded, first)
    load("another step", 7)
    load("dgc", error_feedback="dgc")
    load("dense", density=1)
    said, loaded = load("another density", density=0.2)
    assert not said
    assert_same_memory(loaded, first)
    odd = nn.Sequential(nn.Linear(12, 3))
    told["another model"] = said_by(
        lambda: flare_dist.load_hook_state(
            flare_dist.attach(DistributedDataParallel(odd), density=0.05), place / "saves"
        )
    )
    larger = nn.Sequential()
    larger.first, larger.middle, larger.last = net().children()
    larger.extra = nn.Linear(4, 4)
    told["more parameters"] = said_by(
        lambda: flare_dist.load_hook_state(
            flare_dist.attach(DistributedDataParallel(larger), density=0.05), place / "saves"
        )
    )

    backward(ddp, world.rank, range(2, 4))
    if world.rank == 0:
        flare_dist.save_hook_state(hook, place / "saves")  # and rank 1 is killed
    world.wait_for_all()
    load("crash")
    said, loaded = load("crash, step 2", 2)
    assert not said
    assert_same_memory(loaded, first)
    load("crash, step 4", 4)

    world.wait_for_all()
    file = place / "saves" / "sparse-hook-00001-of-00002-step-2.pt"
    if world.rank == 1:
        file.write_bytes(file.read_bytes()[:1000])
    world.wait_for_all()
    load("damaged", 2)
    for kind, memory in NO_MEMORIES.items():
        world.wait_for_all()
        if world.rank == 1:
            torch.save({"step": 2, "memory": memory}, file)
        world.wait_for_all()
        load(f"no memory: {kind}", 2)
    told["a file"] = said_by(lambda: flare_dist.load_hook_state(attached()[1], file))
    world.wait_for_all()

    _, anew = attached()  # somebody starts over in that directory: the step is smaller, and the save is the last
    anew.step = 1
    if world.rank == 0:
        flare_dist.save_hook_state(anew, place / "saves")
    world.wait_for_all()
    load("started over, damaged")

    old = hook.state_dict()
    torch.save({key: old[key] for key in ("step", "memory")}, place / f"sparse-hook-0000{world.rank}-of-00002.pt")
    world.wait_for_all()
    _, fresh = attached()
    told["old"] = said_by(lambda: flare_dist.load_hook_state(fresh, place))
    assert_same_memory(fresh.state_dict(), old)
    told["old, dgc"] = said_by(lambda: flare_dist.load_hook_state(attached(error_feedback="dgc")[1], place))
    told["old, another step"] = said_by(lambda: flare_dist.load_hook_state(attached()[1], place, step=3))

    dense, hook = attached(density=1)
    backward(dense, world.rank, range(2))
    if world.rank == 0:
        flare_dist.save_hook_state(hook, place / "dense")
    world.wait_for_all()
    told["nothing to lose"] = said_by(lambda: flare_dist.load_hook_state(attached(density=1)[1], place / "dense"))
    told["nothing there"] = said_by(lambda: flare_dist.load_hook_state(hook, place / "nowhere"))
    told["nothing there, zero"] = said_by(lambda: flare_dist.load_hook_state(hook, place / "nowhere", missing="zero"))
    return told


EXPECTED = {
    "whole": [],
    "another step": [r"no complete set of sparse-hook files of step 7 \(found: step 2\)"],
    "dgc": [r"step-2.pt: error_feedback: the memory was saved under ec, and here the rule is dgc"],
    "dense": [r"saved under ec, and here the rule is none \(at density 1"],
    "another model": [r"step-2.pt: the saved memory holds parameters that the model has not: first.bias, first"],
    "more parameters": [r"^[^:]*saves: the saved memory lacks extra.bias, extra.weight"],
    "crash": [r"those of rank 1 of 2 are missing of step 4.*load step=2, which is whole"],
    "crash, step 2": [],
    "crash, step 4": [r"those of rank 1 of 2 are missing of step 4"],
    "damaged": [r"00001-of-00002-step-2.pt: cannot be read"],
    **{f"no memory: {kind}": [r"00001-of-00002-step-2.pt: holds no memory of a sparse hook"] for kind in NO_MEMORIES},
    "a file": [r"00001-of-00002-step-2.pt: is a file; the hook's memory is in a directory"],
    "started over, damaged": [r"00001-of-00002-step-2.pt: holds no memory"],
    "old": [r"written by an older version"],
    "old, dgc": [r"the saved memory of first.weight holds residual, and rule dgc keeps residual, velocity"],
    "old, another step": [r"saved after different steps: 4, not step 3"],
    "nothing to lose": [],
    "nothing there": [r"nowhere holds no complete set of sparse-hook files \(found: none\)"],
    "nothing there, zero": [r"every rank begins without a memory"],
}


def test_what_is_loaded_fits_or_is_refused_in_one_line_on_every_rank(tmp_path: Path) -> None:
    first, second = run_ranks(story_of_loading, RANKS, str(tmp_path))
    assert first == second
    for name, patterns in EXPECTED.items():
        assert len(first[name]) == len(patterns), (name, first[name])
        for said, pattern in zip(first[name], patterns):
            assert "\n" not in said
            assert re.search(pattern, said), (name, said)


def started_over(world: World, directory: str) -> tuple[list[str], int]:
    """A whole set of step 5, then one of step 2 by rank 0 alone; what is loaded?"""
    _, old = attached()
    old.step = 5
    flare_dist.save_hook_state(old, directory)
    world.wait_for_all()
    ddp, anew = attached()
    backward(ddp, world.rank, range(2))
    if world.rank == 0:
        flare_dist.save_hook_state(anew, directory)
    world.wait_for_all()
    said = said_by(lambda: flare_dist.load_hook_state(attached()[1], directory))
    world.wait_for_all()
    flare_dist.save_hook_state(anew, directory)
    world.wait_for_all()
    _, fresh = attached()
    flare_dist.load_hook_state(fresh, directory)
    return said, fresh.step


def test_the_last_save_counts_and_not_the_highest_step(tmp_path: Path) -> None:
    for (said,), number in run_ranks(started_over, RANKS, str(tmp_path)):
        assert re.search("those of rank 1 of 2 are missing of step 2;.*load step=5, which is whole", said)
        assert number == 2


def test_a_file_of_other_slices_is_none_of_a_shard_s_own(tmp_path: Path) -> None:
    """As if `shard_placement_fn` divides columns by now: the same place of the same mesh, and others' rows."""
    rows = Shard(0, 2, 0, 2, None, {"weight": Cut.of_shard((4, 4), 0, 2)}, None, 0)
    columns = replace(rows, cuts={"weight": Cut.of_shard((4, 4), 0, 2, dim=1)})
    path = tmp_path / "saved.pt"
    torch.save({"step": 0, "memory": {}, **rows.saved()}, path)
    assert is_of_shard(rows, path)
    assert not is_of_shard(columns, path)
    assert not is_of_shard(None, path)
