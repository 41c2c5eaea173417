"""Outer steps go on behind finish(), say once what they keep, and load no memory that does not fit."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import flare_dist
from flare_dist.comm.collectives import gather_objects
from flare_dist.comm.world import World
from flare_dist.hook.outer_settings import OuterSettings, check_continued, described
from tests.ranks import run_ranks
from tests.test_outer import adamw, inner_step, net

ON_THE_WAY: dict[str, Any] = {"every": 4, "fragments": 2, "delay": 3, "mix": 0.5}


def train(world: World, model: nn.Module, outer: Any, steps: range) -> None:
    optimizer = adamw(model)
    for step in steps:
        inner_step(model, optimizer, step, world.rank)
        outer.step()


def copied(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def finish_and_go_on(world: World) -> tuple[list[Tensor], list[Tensor]]:
    model = net()
    outer = flare_dist.outer(model, every=3)
    train(world, model, outer, range(1, 7))
    at_a_window = copied(model)
    outer.finish()
    assert all(torch.equal(a, b) for a, b in zip(at_a_window, copied(model)))
    train(world, model, outer, range(7, 8))
    outer.finish()
    once = copied(model)
    outer.finish()
    assert all(torch.equal(a, b) for a, b in zip(once, copied(model)))
    outer = flare_dist.outer(model, **ON_THE_WAY)
    train(world, model, outer, range(1, 6))
    outer.finish()
    between = copied(model)
    train(world, model, outer, range(6, 12))
    outer.finish()
    return between, copied(model)


def test_finish_does_nothing_to_weights_that_are_the_same_and_training_goes_on_behind_it() -> None:
    for own in zip(*run_ranks(finish_and_go_on, 2)):
        assert all(torch.equal(a, b) for a, b in zip(*own))


def part(world: World) -> list[str]:
    """Replica 0 ends behind step 11, and the other goes on; then it begins anew while the other trains."""
    said = []
    go_on: Callable[[], Any]
    for case in ("ends early", "begins late"):
        group: Any = dist.new_group()
        model = net()
        outer = flare_dist.outer(model, every=4, fragments=2, delay=1, mix=0.5, process_group=group)
        train(world, model, outer, range(1, 12))
        if world.rank:
            go_on = partial(train, world, model, outer, range(12, 16))
        else:
            go_on = outer.finish if case == "ends early" else partial(flare_dist.outer, model, process_group=group)
        with pytest.raises(RuntimeError) as error:
            go_on()
        said.append(str(error.value))
    return said


def test_replicas_in_different_steps_are_told_so_on_all_of_them() -> None:
    """Messages of other lengths would abort the process."""
    for said in run_ranks(part, 2):
        assert "outer: all replicas must be in the same step, got replica 0 in step 11, replica 1 in step 12" in said[0]
        assert "got replica 0 in outer(), replica 1 in step 12; let all of them begin, load and end together" in said[1]


def grow_infinite(world: World) -> str:
    model = net()
    outer = flare_dist.outer(model, every=1)
    with torch.no_grad():
        next(model.parameters())[0, 0] = float("inf") if world.rank else 0
    with pytest.raises(FloatingPointError) as error:
        outer.step()
    with pytest.raises(TypeError, match="save_hook_state"):
        copy.deepcopy(outer)
    with pytest.raises(TypeError, match="save_hook_state"):
        pickle.dumps(outer)
    return str(error.value)


def test_weights_that_are_not_finite_end_all_if_everything_is_sent() -> None:
    assert len({*run_ranks(grow_infinite, 2)}) == 1


def say(world: World) -> list[str]:
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("flare_dist").addHandler(handler)
    logging.getLogger("flare_dist").setLevel(logging.INFO)
    flare_dist.outer(net(), every=4, fragments=4, density=0.1)
    return lines


def test_the_first_rank_says_once_what_all_fragments_keep() -> None:
    first, second = run_ranks(say, 2)
    assert first == [
        "beside the outer optimizer, outer steps keep 16 bytes a parameter, 4.53 kB in all (global weights, residual, "
        "mean)"
    ]
    assert second == []


def save_both(world: World, directory: Path) -> list[str]:
    model = net()
    outer = flare_dist.outer(model, every=2, density=0.1)
    train(world, model, outer, range(1, 3))
    ddp = DistributedDataParallel(net())
    state = flare_dist.attach(ddp, density=0.1)
    train(world, ddp, outer, range(3, 5))  # as many steps
    gather_objects(None, None)
    flare_dist.save_hook_state(state, directory)
    flare_dist.save_hook_state(outer, directory)
    gather_objects(None, None)  # all have written theirs
    flare_dist.load_hook_state(state, directory)
    flare_dist.load_hook_state(outer, directory)
    return sorted(path.name for path in directory.iterdir())


def test_a_hook_and_outer_steps_save_beside_each_other(tmp_path: Path) -> None:
    assert len(run_ranks(save_both, 2, tmp_path)[0]) == 4


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"fragments": 4}, "outer.fragments: the memory was saved with 2, got 4; load it with 2"),
        ({"every": 6}, "outer.every: the memory was saved with 4 and something is on the way, got 6"),
        ({"delay": 0}, "outer.delay: the memory was saved with 3 and something is on the way, got 0"),
        (
            {"outer_optimizer": "torch.optim:Adam", "outer_options": {}},
            "keeps momentum_buffer of each weight, got one that keeps exp_avg, exp_avg_sq, step",
        ),
        ({"outer_options": {"lr": 1.0}}, "got one that keeps nothing"),
    ],
)
def test_a_memory_of_other_settings_is_refused(other: dict[str, Any], message: str) -> None:
    momentum = {"weight": {"momentum_buffer": torch.zeros(1)}}
    settings = described(OuterSettings(**ON_THE_WAY))
    saved: dict[str, Any] = {"settings": settings, "arrived": {"weight": torch.zeros(1)}, "optimizer": momentum}
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the message is compared)
        check_continued(OuterSettings(**ON_THE_WAY | other), saved, ())
    assert message in str(error.value)
    check_continued(OuterSettings(**ON_THE_WAY | {"mix": 0.0}), saved, ())
    check_continued(OuterSettings(**ON_THE_WAY | {"every": 6}), saved | {"arrived": {}}, ())
