"""What is taken back leaves the hook as if the backward had never been."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import flare_dist
from flare_dist.comm.world import World
from flare_dist.hook.updates import OptimizerSteps
from tests.helpers.hook import assert_same_memory, batch, break_off, flat, net, with_hook
from tests.ranks import run_ranks

SETTINGS: dict[str, dict[str, Any]] = {
    "ec": {"density": 0.05},
    "dgc": {"density": 0.05, "error_feedback": "dgc", "momentum": 0.5},
    "decay": {"density": 0.05, "residual_decay": 0.9},
    "randk": {"density": 0.05, "sparsifier": "randk"},
    "warm-up": {"density": 0.05, "warmup": (0.5, 0.25), "warmup_rounds": 2},
    "no memory": {"density": 0.05, "error_feedback": "none", "value_codec": "int8"},
    "dense": {"density": 1.0},
    "adam": {"density": 0.05, "preconditioner": "adam"},
    "dense adam": {"density": 1.0, "preconditioner": "adam"},
}
STEPS, THROWN_AWAY = 5, 2


class DataSGD(torch.optim.Optimizer):
    """An optimizer that leaves the version counters alone, as fused kernels do."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.add_(parameter.grad, alpha=-0.1)


def by_hand(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.sub_(parameter.grad, alpha=0.1)


def skip(world: World, settings: dict[str, Any], how: str, scaled: bool, kind: str) -> tuple[Tensor, dict[str, Any]]:
    """Training that throws one step's gradients away by take_back, or leaves that step out."""
    model = net()
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, enabled=scaled)
    ddp, state = with_hook(model, {"bucket_cap_mb": 0.001}, scaler=scaler, **settings)
    optimizer = DataSGD(ddp.parameters()) if kind == "data" else torch.optim.SGD(ddp.parameters(), lr=0.1, momentum=0.9)
    for step in range(STEPS):
        inputs, labels = batch(world.rank, step)
        if step == THROWN_AWAY and how == "left out":
            continue
        optimizer.zero_grad()
        scaler.scale(F.cross_entropy(ddp(inputs), labels)).backward()
        if step == THROWN_AWAY and how == "taken back":
            state.state_dict()  # looking does no harm
            assert state.take_back() == 1
            assert state.take_back() == 0
        elif kind == "by hand":
            by_hand(model)
        else:
            scaler.step(optimizer)
            scaler.update()
    return flat(model), state.state_dict()


def skips(world: World) -> None:
    cases = [(settings, False, "sgd") for settings in SETTINGS.values()]
    cases += [(SETTINGS["ec"], True, "sgd"), (SETTINGS["dgc"], False, "data"), (SETTINGS["ec"], False, "by hand")]
    for settings, scaled, kind in cases:
        parameters, memory = skip(world, settings, "taken back", scaled, kind)
        expected, expected_memory = skip(world, settings, "left out", scaled, kind)
        assert torch.equal(parameters, expected)
        assert_same_memory(memory, expected_memory)
        if settings.get("error_feedback") != "none" and settings["density"] < 1:
            kept, _ = skip(world, settings, "kept", scaled, kind)
            assert not torch.equal(kept, expected)


def test_a_step_taken_back_is_a_step_that_never_was() -> None:
    run_ranks(skips, 2)


def several(world: World) -> dict[str, Any]:
    """What take_back says after more than one backward, and what it leaves."""
    seen: dict[str, Any] = {}
    ddp, state = with_hook(net(), {"bucket_cap_mb": 1e-4}, density=0.05)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1, fused=True)

    def backward(step: int, factor: float = 1.0) -> None:
        inputs, labels = batch(world.rank, step)
        (factor * F.cross_entropy(ddp(inputs), labels)).backward()

    assert state.take_back() == 0
    for step in range(3):
        backward(step)
    before = state.state_dict()
    with pytest.raises(RuntimeError, match=r".") as caught:
        state.take_back()
    seen["message"] = str(caught.value)
    assert_same_memory(state.state_dict(), before)
    optimizer.step()
    assert state.take_back() == 0
    assert_same_memory(state.state_dict(), before)

    backward(3, float("inf"))  # the memory has nothing of it
    backward(4)
    assert state.take_back() == 2
    assert_same_memory(state.state_dict(), before)

    handle = ddp.module.first.register_forward_hook(
        lambda module, inputs, output: output.register_hook(break_off) and None
    )
    with pytest.raises(RuntimeError, match="broken off"):
        backward(5)
    handle.remove()
    assert state.take_back() == 1
    assert_same_memory(state.state_dict(), before)

    for name in ("dense", "no memory"):  # of which there is nothing to keep
        ddp, state = with_hook(net(), **SETTINGS[name])
        backward(0)
        backward(1)
        seen[name] = state.take_back(), state.step
    return seen


def test_more_than_the_last_backward_is_refused_with_its_number_if_the_memory_holds_it() -> None:
    for seen in run_ranks(several, 2):
        assert seen["message"].startswith("take_back: 3 synchronised backwards since the last optimizer step")
        assert "and 2 cannot" in seen["message"]
        assert seen["dense"] == seen["no memory"] == (2, 0)


def adversaries(world: World) -> None:
    """Two networks: the generator's backward goes through the discriminator."""
    (generator, g_state), (judge, d_state) = (
        with_hook(model, density=0.2) for model in (nn.Linear(6, 12), nn.Linear(12, 1))
    )
    g_optimizer, d_optimizer = (torch.optim.Adam(model.parameters(), lr=0.01) for model in (generator, judge))
    for step in range(3):
        real, _ = batch(world.rank, step)
        fake = generator(torch.randn(8, 6, generator=torch.Generator().manual_seed(step)))
        d_optimizer.zero_grad()
        (judge(fake.detach()) - judge(real)).mean().backward()
        d_optimizer.step()
        before = d_state.state_dict()
        g_optimizer.zero_grad()
        (-judge(fake).mean()).backward()
        g_optimizer.step()
        assert d_state.take_back() == 1
        assert_same_memory(d_state.state_dict(), before)
        assert (g_state.take_back(), g_state.step, d_state.step) == (0, step + 1, step + 1)


def test_a_generator_s_backward_leaves_the_discriminator_s_memory_alone() -> None:
    run_ranks(adversaries, 2)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, fused=True),
        lambda p: torch.optim.Adam(p, lr=0.1, foreach=True),
        lambda p: torch.optim.AdamW(p, lr=0.1, foreach=False),
        DataSGD,
    ],
    ids=["fused", "foreach", "one by one", "data"],
)
def test_every_kind_of_optimizer_step_is_noticed(make: Callable[[Any], torch.optim.Optimizer]) -> None:
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    steps = OptimizerSteps(model.parameters())
    tokens = [steps()]
    optimizers = [make(part.parameters()) for part in (other, model)]
    for part, optimizer in zip((other, model), optimizers):
        part(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        tokens.append(steps())
    assert tokens[0] == tokens[1] != tokens[2]


def test_an_embedding_that_norms_its_rows_in_forward_makes_no_step() -> None:
    embedding = nn.Embedding(5, 3, max_norm=0.1)
    steps, optimizer = OptimizerSteps(embedding.parameters()), torch.optim.SGD(embedding.parameters(), lr=0.1)
    embedding(torch.tensor([1])).sum().backward()
    optimizer.step()
    before = steps()
    embedding(torch.tensor([2]))
    assert steps() == before


def test_a_state_of_one_process_has_nothing_to_take_back() -> None:
    assert flare_dist.SparseHookState(nn.Linear(2, 2)).take_back() == 0
