"""Clipping before error feedback: each rank's whole gradient, once its last bucket is there."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flare_dist.comm.world import World
from flare_dist.hook.state import SparseHookState
from tests.helpers.hook import (
    assert_resumed_is_straight,
    assert_same_memory,
    backward,
    batch,
    break_off,
    flat,
    net,
    with_hook,
)
from tests.ranks import run_ranks

LIMIT = 0.1  # a fraction of the norms here
CLIP: dict[str, Any] = {"density": 0.05, "clip_norm": LIMIT}
SMALL_BUCKETS = {"bucket_cap_mb": 0.001}
STEPS = 8


def take_steps(ddp: nn.Module, rank: int, numbers: range, factor: float = 1.0) -> None:
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    for number in numbers:
        inputs, labels = batch(rank, number)
        optimizer.zero_grad()
        (factor * F.cross_entropy(ddp(inputs), labels)).backward()
        optimizer.step()


def gradient_of(rank: int, number: int) -> Tensor:
    """The flat gradient of one batch at the initial parameters."""
    model = net()
    backward(model, rank, range(number, number + 1))
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])  # type: ignore[union-attr]


def clipped(world: World) -> list[tuple[Tensor, Tensor]]:
    """What comes back at density 1, and the mean of the ranks' gradients, each clipped by its own norm."""
    ddp, _ = with_hook(net(), SMALL_BUCKETS, density=1.0, clip_norm=LIMIT)
    pairs = []
    for number in range(3):
        ddp.zero_grad()
        backward(ddp, world.rank, range(number, number + 1))
        expected = []
        for rank in range(world.size):
            gradient = gradient_of(rank, number)
            expected.append(gradient * min(1.0, LIMIT / (gradient.norm().item() + 1e-6)))
        back = torch.cat([parameter.grad.flatten() for parameter in ddp.parameters()])  # type: ignore[union-attr]
        pairs.append((back, torch.stack(expected).mean(0)))
    return pairs


def test_a_rank_clips_its_whole_gradient_before_it_is_sent() -> None:
    assert gradient_of(0, 0).norm() > 2 * LIMIT  # it does clip
    for pairs in run_ranks(clipped, 2):
        for back, expected in pairs:
            torch.testing.assert_close(back, expected, rtol=1e-5, atol=1e-7)


def below(world: World) -> None:
    """A limit above the norm changes nothing, whatever the loss scale."""
    plain, state = with_hook(net(), density=0.05)
    take_steps(plain, world.rank, range(3))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    ddp, clipping = with_hook(net(), SMALL_BUCKETS, density=0.05, clip_norm=100.0, scaler=scaler)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    for number in range(3):
        inputs, labels = batch(world.rank, number)
        optimizer.zero_grad()
        scaler.scale(F.cross_entropy(ddp(inputs), labels)).backward()
        scaler.step(optimizer)
        scaler.update()
    assert torch.equal(flat(ddp), flat(plain))
    assert_same_memory(clipping.state_dict(), state.state_dict())


def test_a_limit_above_the_norm_changes_no_bit() -> None:
    run_ranks(below, 2)


def trained(world: World, ddp: dict[str, Any] | None) -> tuple[Tensor, dict[str, Any]]:
    wrapped, state = with_hook(net(), ddp, **CLIP)
    take_steps(wrapped, world.rank, range(STEPS))
    return flat(wrapped), state.state_dict()


def test_buckets_change_nothing() -> None:
    (parameters, memory), (other, _) = run_ranks(trained, 2, None)
    (same, same_memory), _ = run_ranks(trained, 2, SMALL_BUCKETS)
    assert torch.equal(parameters, other)
    assert torch.equal(parameters, same)
    assert_same_memory(same_memory, memory)


def continued(world: World, directory: str) -> None:
    def take(ddp: nn.Module, numbers: range) -> None:
        take_steps(ddp, world.rank, numbers)

    for settings in (CLIP, CLIP | {"error_feedback": "dgc"}, CLIP | {"density": 1.0}):
        place = f"{directory}/{settings.get('error_feedback')}-{settings['density']}"
        assert_resumed_is_straight(take, place, settings, kill_at=3, steps=STEPS)


def test_saved_loaded_and_continued_is_straight(tmp_path: Path) -> None:
    run_ranks(continued, 2, str(tmp_path))


def undone(world: World) -> None:
    """A step that is not finite on one rank leaves no trace."""
    ddp, state = with_hook(net(), SMALL_BUCKETS, **CLIP)
    take_steps(ddp, world.rank, range(3))
    before = state.state_dict()
    for value in (math.inf, math.nan):
        ddp.zero_grad()
        inputs, labels = batch(world.rank, 3)
        (F.cross_entropy(ddp(inputs), labels) * (value if world.rank else 1)).backward()
        assert not any(parameter.grad.isfinite().all() for parameter in ddp.parameters())  # type: ignore[union-attr]
        assert_same_memory(state.state_dict() | {"step": 3}, before)


def test_a_step_that_comes_to_nothing_leaves_no_trace() -> None:
    run_ranks(undone, 2)


def broken_off(world: World) -> None:
    """Buckets of a backward that was broken off wait no more, and what comes after is what it would have been."""
    models = []
    for breaks in (False, True):
        ddp, state = with_hook(net(), SMALL_BUCKETS, **CLIP)
        take_steps(ddp, world.rank, range(2))
        if breaks:
            before = state.state_dict()
            middle = ddp.module.middle
            handle = middle.register_forward_hook(lambda module, given, out: out.register_hook(break_off) and None)
            with pytest.raises(RuntimeError, match="broken off"):
                backward(ddp, world.rank, range(2, 3))
            handle.remove()
            state.take_back()
            assert_same_memory(state.state_dict(), before)
            ddp, after = with_hook(ddp.module, SMALL_BUCKETS, **CLIP)
            after.load_state_dict(before)
        take_steps(ddp, world.rank, range(2, 4))
        models.append(flat(ddp))
    assert torch.equal(*models)


def test_a_backward_that_is_broken_off_holds_nothing_back() -> None:
    run_ranks(broken_off, 2)


def refused(world: World) -> str:
    """What is raised if the exchange of a bucket fails when its mean has arrived."""
    ddp, state = with_hook(net(), SMALL_BUCKETS, **CLIP)
    state.saves.receive = fail  # type: ignore[method-assign]
    with pytest.raises(RuntimeError) as caught:
        backward(ddp, world.rank, range(1))
    return str(caught.value)


def fail(notes: Tensor) -> None:
    raise ValueError("rank 1: its message was damaged on the way")


def test_an_error_of_the_exchange_arrives_as_itself() -> None:
    for said in run_ranks(refused, 2):
        assert "rank 1: its message was damaged on the way" in said
        assert "cast" not in said


def skips(world: World) -> Tensor:
    """Parameters after steps that leave a layer out."""
    ddp, _ = with_hook(net(), {"find_unused_parameters": True}, **CLIP)
    for number in range(3):
        inputs, labels = batch(world.rank, number)
        ddp.zero_grad()
        F.cross_entropy(ddp(inputs, skip=True), labels).backward()
        torch.optim.SGD(ddp.parameters(), lr=0.1).step()
    return flat(ddp)


def test_unused_parameters_are_held_back_like_others() -> None:
    one, other = run_ranks(skips, 2)
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clip_norm": math.inf}, r"^gradients\.clip_norm: out of range, got inf"),
        ({"clip_norm": 0.0}, r"^gradients\.clip_norm: out of range, got 0\.0; choose a number in \(0, inf\)$"),
        ({"preconditioner": "adam"}, r"^gradients\.preconditioner: its update has the same size .*; leave it out; "),
    ],
)
def test_what_does_not_go_with_it_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SparseHookState(nn.Linear(3, 2), **CLIP | settings)


def test_complex_gradients_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^gradients\.clip_norm: clipping takes real gradients, got torch\.comp"):
        SparseHookState(nn.Linear(3, 2, dtype=torch.complex64), density=1.0, clip_norm=1.0)


def test_sparse_gradients_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^gradients\.clip_norm: clipping takes dense gradients, got .* of weight;"):
        SparseHookState(nn.Embedding(3, 2, sparse=True), density=1.0, clip_norm=1.0)
