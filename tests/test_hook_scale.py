"""Loss scales and overflows: the memory is kept unscaled, and a step that fails leaves it as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from flare_dist.comm.world import World
from flare_dist.hook.ddp import exchange_gradients
from flare_dist.hook.state import SparseHookState
from tests.helpers.hook import STEPS, assert_same_memory, batch, flat, net, with_hook
from tests.ranks import run_ranks


def mixed(world: World, scale: float | None) -> tuple[Tensor, dict[str, Any]]:
    """Training with a loss scale on a model of float32 weights."""
    model = net()
    scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, growth_interval=7, enabled=scale is not None)
    wrapped, state = with_hook(model, density=0.05, scaler=scaler)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1, momentum=0.9)
    for step in range(STEPS):
        optimizer.zero_grad()
        inputs, labels = batch(world.rank, step)
        scaler.scale(F.cross_entropy(wrapped(inputs), labels)).backward()
        scaler.step(optimizer)
        scaler.update()
    return flat(model), state.state_dict()


def test_the_memory_is_kept_unscaled_while_the_loss_scale_grows() -> None:
    """A power of two changes no bit, so neither may the scale."""
    for (scaled, state), (plain, expected) in zip(run_ranks(mixed, 2, 1024.0), run_ranks(mixed, 2, None)):
        assert torch.equal(scaled, plain)
        assert_same_memory(state, expected)


OVERFLOWS: dict[str, dict[str, Any]] = {
    "topk": {"density": 0.05},
    "whole tensors": {"density": 0.05, "dense_below": 200},
    "blocks": {"density": 0.1, "scope": "block", "block": 16},
    "dgc": {"density": 0.05, "error_feedback": "dgc", "momentum": 0.5},
}


def overflowing(
    world: World, poisoned_step: int | None, poisoned_rank: int, settings: dict[str, Any]
) -> tuple[Tensor, dict[str, Any], float]:
    """Ten steps under a GradScaler of which one overflows on one rank, or is left out."""
    model = net()
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    wrapped, state = with_hook(model, {"bucket_cap_mb": 0.001}, scaler=scaler, **settings)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    for step in range(10):
        if step == 5 and poisoned_step is None:
            continue
        inputs, labels = batch(world.rank, step)
        if step == poisoned_step and world.rank == poisoned_rank:
            inputs[0, 0] = torch.inf
        optimizer.zero_grad()
        scaler.scale(F.cross_entropy(wrapped(inputs), labels)).backward()
        scaler.step(optimizer)
        scaler.update()
    return flat(model), state.state_dict(), scaler.get_scale()


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("kind", OVERFLOWS)
def test_an_overflow_on_any_rank_leaves_everything_as_it_was(kind: str, rank: int) -> None:
    """Several buckets: those that were exchanged before the overflow are taken back as well."""
    settings = OVERFLOWS[kind]
    poisoned, skipped = run_ranks(overflowing, 2, 5, rank, settings), run_ranks(overflowing, 2, None, 0, settings)
    for (parameters, state, scale), (expected, memory, full_scale) in zip(poisoned, skipped):
        assert torch.equal(parameters, expected)
        assert (scale, full_scale) == (32.0, 64.0)
        assert_same_memory(state | {"step": memory["step"]}, memory)  # the step that failed was one all the same


def poisoned_once(world: World, settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], list[Tensor]]:
    """The memory before and after a step without a GradScaler that is not finite on rank 1, and its gradients."""
    wrapped, state = with_hook(net(), **settings)
    for step in range(3):
        before = state.state_dict()
        inputs, labels = batch(world.rank, step)
        if step == 2 and world.rank == 1:
            inputs[0, 0] = torch.nan
        wrapped.zero_grad()
        F.cross_entropy(wrapped(inputs), labels).backward()
    return before, state.state_dict(), [p.grad for p in wrapped.parameters() if p.grad is not None]


@pytest.mark.parametrize(
    "settings", [{"density": 0.05, "sparsifier": "randk"}, {"density": 0.05}], ids=["randk", "topk"]
)
def test_without_a_scaler_what_is_not_finite_is_seen_everywhere_and_not_remembered(settings: dict[str, Any]) -> None:
    for before, after, gradients in run_ranks(poisoned_once, 2, settings):
        assert any(own["residual"].any() for own in before["memory"].values())
        assert_same_memory(before | {"step": after["step"]}, after)
        assert all(gradient.isinf().all() for gradient in gradients)


def too_large_once_scaled(world: World) -> tuple[bool, dict[str, Any], float]:
    """Finite gradients whose residual, with the loss scale put back, is more than float16 holds."""
    model = net()
    state = SparseHookState(model, density=0.05, scaler=torch.amp.GradScaler("cpu", init_scale=8192.0))
    names = [name for name, _ in model.named_parameters()]
    residual = {name: {"residual": torch.full_like(p.detach(), 10.0)} for name, p in model.named_parameters()}
    state.load_state_dict({"step": 0, "memory": {name: residual[name] for name in names}})
    state.begin_step()
    buffer = torch.ones(flat(model).numel(), dtype=torch.float16)
    mean = exchange_gradients(state, list(model.parameters()), buffer).wait()
    after = state.state_dict()["memory"]
    return bool(mean.isinf().all()), after, min(float(own["residual"].min()) for own in after.values())


def test_an_overflow_by_the_exchange_itself_leaves_the_memory_as_it_was() -> None:
    for everywhere, after, smallest in run_ranks(too_large_once_scaled, 2):
        assert everywhere
        assert smallest == 10.0
        assert all((own["residual"] == 10.0).all() for own in after.values())
