"""The hook with a preconditioner: Adam on each rank, sparse means of updates, plain SGD outside."""

from __future__ import annotations

import copy
import logging
import math
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW

import flare_dist
from flare_dist.comm.collectives import alone_group
from flare_dist.comm.world import World
from flare_dist.hook.state import SparseHookState
from tests.helpers.hook import (
    assert_resumed_is_straight,
    assert_same_memory,
    attached,
    backward,
    batch,
    flat,
    net,
    with_hook,
)
from tests.ranks import run_ranks

ADAM: dict[str, Any] = {"density": 0.05, "preconditioner": "adam"}
SMALL_BUCKETS = {"bucket_cap_mb": 0.001}
STEPS = 12


def sgd(ddp: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(ddp.parameters(), lr=0.01, weight_decay=0.1)


def take_steps(ddp: nn.Module, rank: int, numbers: range, factor: float = 1.0) -> None:
    optimizer = sgd(ddp)
    for number in numbers:
        inputs, labels = batch(rank, number)
        optimizer.zero_grad()
        (factor * F.cross_entropy(ddp(inputs), labels)).backward()
        optimizer.step()


def trained(
    world: World, settings: dict[str, Any], ddp: dict[str, Any] | None = None, steps: int = STEPS
) -> tuple[Tensor, dict[str, Any], int]:
    """(parameters, memory, bytes of this rank) after some steps."""
    wrapped, state = with_hook(net(), ddp, **settings)
    take_steps(wrapped, world.rank, range(steps))
    return flat(wrapped), state.state_dict(), state.traffic.uplink_bytes


class Given(nn.Module):
    """Parameters whose gradients are what forward is given."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.linspace(-1, 1, 77).view(7, 11))
        self.second = nn.Parameter(torch.linspace(2, -2, 300))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return (self.first * first).sum() + (self.second * second).sum()


def given_gradients(world: World) -> tuple[Tensor, Tensor]:
    """Parameters after 200 steps of the hook at density 1 and SGD, and of AdamW; some tensors' gradients are zero."""
    rng = torch.Generator().manual_seed(0)
    ours, theirs = Given(), Given()
    _, alone = alone_group()
    settings = {"density": 1.0, "preconditioner": "adam", "update_clip": math.inf}
    ddp, _ = with_hook(ours, {"process_group": alone}, process_group=alone, **settings)
    outer = torch.optim.SGD(ddp.parameters(), lr=0.01, weight_decay=0.1)
    adamw = torch.optim.AdamW(theirs.parameters(), lr=0.01, betas=(0.0, 0.99), weight_decay=0.1)
    for step in range(200):
        first = torch.randn(7, 11, generator=rng) * (step % 3 != 0)
        second = 1e-3 * torch.randn(300, generator=rng) * (step % 7 != 2)
        for model, optimizer in ((ddp, outer), (theirs, adamw)):
            optimizer.zero_grad()
            model(first, second).backward()
            optimizer.step()
    return flat(ours), flat(theirs)


def test_density_1_on_one_rank_is_adamw_without_momentum() -> None:
    for ours, theirs in run_ranks(given_gradients, 2):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("density", [0.05, 1.0])
def test_ranks_stay_alike_and_buckets_change_nothing(density: float) -> None:
    settings = ADAM | {"density": density}
    (parameters, memory, sent), (other, other_memory, _) = run_ranks(trained, 2, settings)
    assert torch.equal(parameters, other)
    weight, other_weight = memory["memory"]["first.weight"], other_memory["memory"]["first.weight"]
    assert not torch.equal(weight["second_moment"], other_weight["second_moment"])
    assert weight["updates"] == other_weight["updates"] == STEPS
    if density == 1.0:
        return
    (same, same_memory, _), _ = run_ranks(trained, 2, settings, SMALL_BUCKETS)
    assert torch.equal(parameters, same)
    assert_same_memory(same_memory, memory)
    (_, _, sent_by_ec), _ = run_ranks(trained, 2, {"density": density})
    assert sent == sent_by_ec


@pytest.mark.parametrize("density", [0.05, 1.0])
def test_ranks_are_alike_after_200_steps(density: float) -> None:
    (parameters, _, _), (other, _, _) = run_ranks(trained, 2, ADAM | {"density": density}, None, 200)
    assert torch.equal(parameters, other)


def continued(world: World, directory: str) -> None:
    def take(ddp: nn.Module, numbers: range) -> None:
        take_steps(ddp, world.rank, numbers)

    for settings in (ADAM, ADAM | {"density": 1.0}, ADAM | {"error_feedback": "none"}):
        place = f"{directory}/{settings.get('error_feedback', 'ec')}-{settings['density']}"
        other_buckets = SMALL_BUCKETS if settings["density"] < 1 else None
        assert_resumed_is_straight(take, place, settings, kill_at=5, steps=STEPS, resumed=other_buckets)


def test_saved_loaded_and_continued_is_straight(tmp_path: Path) -> None:
    run_ranks(continued, 2, str(tmp_path))


def not_finite(world: World) -> None:
    """A gradient that is not finite on one rank leaves no trace on any."""
    for density in (0.05, 1.0):
        ddp, state = with_hook(net(), **ADAM | {"density": density})
        take_steps(ddp, world.rank, range(3))
        before = state.state_dict()
        for value in (math.inf, math.nan, 1e24):  # the last one's gradients are finite, but not their squares
            ddp.zero_grad()
            inputs, labels = batch(world.rank, 3)
            (F.cross_entropy(ddp(inputs), labels) * (value if world.rank == 1 else 1)).backward()
            finite = [parameter.grad.isfinite().all() for parameter in ddp.parameters()]  # type: ignore[union-attr]
            assert not any(finite) if density < 1 or value != 1e24 else not all(finite)
            assert_same_memory(state.state_dict() | {"step": 3}, before)
        ddp.zero_grad()
        backward(ddp, world.rank, range(4, 5))
        after = state.state_dict()["memory"]["first.weight"]
        assert after["updates"] == 4
        assert all(vector.isfinite().all() for vector in after.values())


def test_a_step_that_is_not_finite_does_not_count() -> None:
    run_ranks(not_finite, 2)


def unused(world: World) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Memory of a layer before and after a step that did not use it."""
    ddp, state = with_hook(net(), {"find_unused_parameters": True}, **ADAM)
    take_steps(ddp, world.rank, range(3))
    before = state.state_dict()["memory"]["middle.weight"]
    inputs, labels = batch(world.rank, 3)
    ddp.zero_grad()
    F.cross_entropy(ddp(inputs, skip=True), labels).backward()
    return before, state.state_dict()["memory"]["middle.weight"]


def test_second_moments_advance_without_a_gradient_and_the_residual_does_not() -> None:
    for before, after in run_ranks(unused, 2):
        assert (before["updates"], after["updates"]) == (3, 4)
        torch.testing.assert_close(after["second_moment"], 0.99 * before["second_moment"])
        assert torch.equal(after["residual"], before["residual"])


def decayed(world: World) -> None:
    """Sent + new residual = update + decayed residual, by the rank's own update."""
    _, alone = alone_group()
    settings = ADAM | {"process_group": alone}
    ddp, state = with_hook(net(), {"process_group": alone}, **settings | {"residual_decay": 0.5, "density": 0.2})
    plain, twin = with_hook(net(), {"process_group": alone}, **settings | {"density": 1.0})
    residual = torch.zeros(40, 40)
    for number in range(3):
        ddp.zero_grad()
        plain.zero_grad()
        backward(ddp, world.rank, range(number, number + 1))
        backward(plain, world.rank, range(number, number + 1))
        sent, update = ddp.module.middle.weight.grad, plain.module.middle.weight.grad
        new = state.state_dict()["memory"]["middle.weight"]["residual"].view(40, 40)
        torch.testing.assert_close(sent + new, update + 0.5 * residual)
        residual = new
    assert twin.step == 3


def test_a_residual_of_updates_may_decay() -> None:
    run_ranks(decayed, 2)


def scaled(world: World) -> None:
    """A loss scale that is a power of two changes no bit."""
    for density in (0.05, 1.0):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1)
        (ddp, state), (plain, twin) = (
            with_hook(net(), scaler=scaler, **ADAM | {"density": density}),
            with_hook(net(), **ADAM | {"density": density}),
        )
        optimizer = sgd(ddp)
        for number in range(4):
            inputs, labels = batch(world.rank, number)
            optimizer.zero_grad()
            scaler.scale(F.cross_entropy(ddp(inputs), labels)).backward()
            scaler.step(optimizer)
            scaler.update()
        take_steps(plain, world.rank, range(4))
        assert torch.equal(flat(ddp), flat(plain))
        assert_same_memory(state.state_dict(), twin.state_dict())


def test_updates_are_of_gradients_without_the_loss_scale() -> None:
    run_ranks(scaled, 2)


def accumulates(world: World) -> list[str]:
    """What is said of a second backward onto an exchanged mean, and nothing of all other ways to accumulate."""
    said = []
    for within in (False, True):
        ddp, state = with_hook(net(), SMALL_BUCKETS, **ADAM)
        backward(ddp, world.rank, range(1))
        before = state.state_dict()
        with pytest.raises(RuntimeError) as caught, ddp.no_sync() if within else nullcontext():
            backward(ddp, world.rank, range(1, 2))
        said.append(str(caught.value))
        assert_same_memory(state.state_dict(), before)

    for set_to_none in (True, False):
        ddp, state = with_hook(net(), {"gradient_as_bucket_view": set_to_none}, **ADAM)
        optimizer = sgd(ddp)
        for number in range(0, 9, 3):
            with ddp.no_sync():
                backward(ddp, world.rank, range(number, number + 2))
            backward(ddp, world.rank, range(number + 2, number + 3))
            optimizer.step()
            optimizer.zero_grad(set_to_none=set_to_none)
        assert state.step == 3
    for density in (0.05, 1.0):  # without preconditioner they add up, as ever
        ddp, state = with_hook(net(), density=density)
        backward(ddp, world.rank, range(2))
        assert state.step == 2
    return said


def test_a_backward_onto_an_exchanged_mean_is_refused() -> None:
    for said in run_ranks(accumulates, 2):
        for line in said:
            assert line.startswith("gradients.preconditioner: adds updates and not gradients, got a second backward ")
            assert "; run all but the last backward of a step under no_sync, or call zero_grad first" in line
            assert "\n" not in line


def saves(world: World, directory: str) -> dict[str, Any]:
    ddp, state = with_hook(net(), **ADAM)
    take_steps(ddp, world.rank, range(4))
    flare_dist.save_hook_state(state, directory)
    return state.state_dict()["memory"]


def loads(world: World, directory: str) -> tuple[dict[str, Any], list[str]]:
    state = SparseHookState(net(), **ADAM)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        flare_dist.load_hook_state(state, directory)
    return state.state_dict()["memory"], [str(each.message) for each in caught if each.category is UserWarning]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_another_number_of_ranks_rescales_second_moments_and_says_so(tmp_path: Path, size: int) -> None:
    saved = run_ranks(saves, 2, str(tmp_path))
    for rank, (memory, said) in enumerate(run_ranks(loads, size, str(tmp_path))):
        if size == 2:
            assert said == []
            assert_same_memory({"step": 0, "memory": memory}, {"step": 0, "memory": saved[rank]})
            continue
        (line,) = said
        assert line.startswith(f"gradients.preconditioner: 2 ranks saved their second moments and {size} load them, ")
        assert f"times {size / 2:g} as if all ranks together still took as many examples" in line
        for name, own in memory.items():
            mean = {kind: (saved[0][name][kind] + saved[1][name][kind]) / 2 for kind in own}
            torch.testing.assert_close(own["residual"], mean["residual"])
            torch.testing.assert_close(own["second_moment"], mean["second_moment"] * size / 2)
            assert own["updates"] == 4


def test_a_copy_keeps_the_preconditioner_and_its_memory() -> None:
    state = SparseHookState(nn.Linear(3, 2), update_clip=2.0, **ADAM)
    memory = {"residual": torch.ones(2, 3), "second_moment": torch.ones(2, 3), "updates": torch.tensor(7.0)}
    state.load_state_dict({"step": 7, "memory": {"weight": memory}})
    copied = copy.deepcopy(state)
    assert copied.preconditioning == state.preconditioning
    assert_same_memory(copied.state_dict(), state.state_dict())


def test_memory_of_another_rule_is_refused() -> None:
    adam, ec = SparseHookState(nn.Linear(3, 2), **ADAM), SparseHookState(nn.Linear(3, 2), density=0.05)
    with pytest.raises(ValueError, match=r"^error_feedback: the memory was saved under adam and ec, and .* is ec; att"):
        ec.load_state_dict(adam.state_dict())
    with pytest.raises(ValueError, match=r"^error_feedback: the memory was saved under ec, and .* is adam and ec; att"):
        adam.load_state_dict(ec.state_dict())


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        (
            nn.Linear(3, 2),
            {"error_feedback": "dgc"},
            r"^gradients\.preconditioner: dgc's .*, got adam with .*; use ec$",
        ),
        (nn.Linear(3, 2), {"betas": (0.9, 0.99)}, r"^gradients\.betas: beta1 must be 0"),
        (nn.Linear(3, 2).half(), {}, r"^gradients\.preconditioner: updates times .* float16, got it in weight; use bf"),
        (
            nn.Embedding(3, 2, sparse=True),
            {"density": 1.0},
            r"^gradients\.preconditioner: .* got sparse ones of weight",
        ),
        (
            nn.Linear(3, 2, dtype=torch.complex64),
            {"density": 1.0},
            r"^gradients\.preconditioner: .* got torch\.complex",
        ),
    ],
)
def test_what_does_not_go_with_it_is_refused(model: nn.Module, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        SparseHookState(model, **ADAM | settings)
    assert "\n" not in str(caught.value)


def bf16(world: World) -> tuple[Tensor, Tensor]:
    ddp, state = with_hook(net().bfloat16(), **ADAM)
    inputs, labels = batch(world.rank, 0)
    F.cross_entropy(ddp(inputs.bfloat16()), labels).backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in ddp.parameters() if parameter.grad is not None])
    return gradient, state.state_dict()["memory"]["first.weight"]["second_moment"]


def test_bf16_gradients_have_float32_moments() -> None:
    (gradient, moment), (other, _) = run_ranks(bf16, 2)
    assert torch.equal(gradient, other)
    assert (gradient.dtype, moment.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize(
    ("settings", "bytes_"),
    [
        ({}, 12),
        ({"error_feedback": "dgc"}, 20),
        ({"preconditioner": "adam"}, 20),
        ({"preconditioner": "adam", "density": 1.0}, 8),
        ({"preconditioner": "adam", "error_feedback": "none"}, 12),
        ({"error_feedback": "none"}, 4),
    ],
)
def test_attach_logs_the_memory_that_it_takes(
    caplog: pytest.LogCaptureFixture, settings: dict[str, Any], bytes_: int
) -> None:
    model = nn.Linear(10, 10, bias=False)
    with caplog.at_level(logging.INFO, "flare_dist"):
        state = SparseHookState(model, **settings)
    (line,) = caplog.messages
    assert line.startswith(f"the hook keeps {bytes_} bytes a parameter, {show(100 * bytes_)} in all (")
    bucket = state.bucket_of(list(model.parameters()))
    held = [*bucket.kept.values(), *bucket.pending.values(), bucket._mean]
    assert sum(vector.nbytes for vector in held if vector.numel() > 1) == 100 * bytes_  # but for numbers of steps


def logged(world: World) -> list[str]:
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("flare_dist")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    attached()
    return lines


def test_one_rank_logs_the_memory_for_all() -> None:
    first, second = run_ranks(logged, 2)
    assert [line[:28] for line in first] == ["the hook keeps 12 bytes a pa"]
    assert second == []


def show(count: int) -> str:
    return f"{count} B" if count < 1000 else f"{count / 1000:g} kB"


class OwnAdam(AdamW):
    """An optimizer of the user's own."""


def not_handed_over(world: World) -> list[str]:
    """What is said of an AdamW behind the updates that attach was not told of, and nothing of what is right."""
    said = []
    for make in (AdamW, OwnAdam, torch.optim.RMSprop):
        ddp, state = attached(**ADAM)
        optimizer = make(ddp.parameters(), lr=0.002)
        before = flat(ddp)
        backward(ddp, world.rank, range(1))
        with pytest.raises(ValueError, match=r"^attach: ") as caught:
            optimizer.step()
        said.append(str(caught.value))
        assert torch.equal(flat(ddp), before)
        make(net().parameters()).step()  # of another model
        assert state.take_back() == 1
        ddp.zero_grad()
        with ddp.no_sync():
            backward(ddp, world.rank, range(1))
        optimizer.step()  # by gradients of its own
        optimizer.zero_grad()
        take_steps(ddp, world.rank, range(2))
    ddp, _ = attached(density=0.05)
    optimizer = AdamW(ddp.parameters(), betas=(0.0, 0.999))
    backward(ddp, world.rank, range(1))
    optimizer.step()
    return said


def test_an_adam_behind_updates_that_was_not_handed_over_is_refused_at_its_first_step() -> None:
    for said in run_ranks(not_handed_over, 2):
        for name, line in zip(("AdamW", "OwnAdam", "RMSprop"), said, strict=True):
            assert line.startswith("attach: preconditioner=adam returns updates, not gradients, and " + name)
            assert "write optimizer = torch.optim.SGD(model.parameters(), lr=0.002" in line
            assert "\n" not in line


def attaches(world: World) -> int:
    ddp, state = attached(preconditioner="adam", betas=[0.0, 0.999], eps=1e-6, update_clip=2)
    assert isinstance(ddp, DistributedDataParallel)
    take_steps(ddp, world.rank, range(2))
    assert state.preconditioning.betas == (0.0, 0.999)
    own = state.memory.after_step(None)["middle.weight"]
    assert sorted(own) == ["residual", "second_moment", "updates"]
    return state.step


def test_attach_takes_its_settings() -> None:
    assert run_ranks(attaches, 2) == [2, 2]


def test_a_script_without_logging_reads_it_on_stderr(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    SparseHookState(nn.Linear(10, 10, bias=False))
    assert capsys.readouterr().err.startswith("the hook keeps 12 bytes a parameter, ")
