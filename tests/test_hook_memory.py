"""The hook remembers of each parameter what was not sent, whatever becomes of the step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from flare_dist.comm.world import World
from tests.helpers.hook import assert_same_memory, batch, break_off, flat, net, train, with_hook
from tests.ranks import run_ranks


def test_without_memory_the_rest_is_lost() -> None:
    (hooked, state), _ = run_ranks(train, 2, {"density": 0.05, "error_feedback": "none"})
    assert all(own == {} for own in state["memory"].values())
    assert not torch.equal(hooked, run_ranks(train, 2, {"density": 0.05})[0][0])


def gradients(world: World, settings: dict[str, Any]) -> tuple[list[Tensor], dict[str, Any], int]:
    """The gradients of one backward pass, the memory and the bytes on the wire."""
    wrapped, state = with_hook(net(), **settings)
    inputs, labels = batch(world.rank, 0)
    F.cross_entropy(wrapped(inputs), labels).backward()
    return [p.grad for p in wrapped.parameters() if p.grad is not None], state.state_dict(), state.wire_bytes


def test_small_tensors_are_sent_whole() -> None:
    """Biases of 40 and 4 entries: their gradients are those of plain DDP, and nothing of them is remembered."""
    plain = run_ranks(gradients, 2, {"density": 1.0})[0][0]
    mean, state, wire_bytes = run_ranks(gradients, 2, {"density": 0.05, "dense_below": 40, "index_codec": "int32"})[0]
    for gradient, expected in zip(mean, plain):
        if gradient.numel() <= 40:
            torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-8)
        else:
            assert 0 < int(gradient.count_nonzero()) <= 2 * -(-gradient.numel() // 20)
    assert not any(own["residual"].any() for name, own in state["memory"].items() if name.endswith("bias"))
    pairs, whole = 24 + 80 + 8, 40 + 40 + 4
    assert wire_bytes == 2 * -(-4 * (4 + 2 * pairs + whole) // 512) * 512  # behind a header of four words


MEMORIES = [{}, {"residual_decay": 0.9}, {"error_feedback": "dgc", "momentum": 0.5}]


def leaving_out(world: World, settings: dict[str, Any]) -> tuple[list[float], list[float]]:
    """The middle layer's weights and memory around steps in which it is used, left out, and used again."""
    model = net()
    wrapped, state = with_hook(model, {"find_unused_parameters": True}, density=0.05, **settings)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    weights, residuals = [], []
    for step, skip in enumerate([False, True, True, False]):
        inputs, labels = batch(world.rank, step)
        optimizer.zero_grad()
        F.cross_entropy(wrapped(inputs, skip), labels).backward()
        optimizer.step()
        weights.append(float(model.middle.weight.detach().double().sum()))
        own = state.state_dict()["memory"]["middle.weight"]
        residuals.append(sum(float(vector.double().abs().sum()) for vector in own.values()))
    return weights, residuals


@pytest.mark.parametrize("settings", MEMORIES)
def test_what_no_rank_uses_is_neither_sent_nor_cleared(settings: dict[str, Any]) -> None:
    for weights, residuals in run_ranks(leaving_out, 2, settings):
        assert weights[0] == weights[1] == weights[2] != weights[3]
        assert residuals[0] == residuals[1] == residuals[2] != residuals[3]
        assert residuals[0] > 0


def uneven(world: World) -> tuple[Tensor, dict[str, Any], dict[str, Any]]:
    """Rank 1 has two batches fewer; its memory when it runs out, and in the end."""
    model = net()
    wrapped, state = with_hook(model, density=0.05)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    with wrapped.join(divide_by_initial_world_size=True):
        for step in range(6 - 2 * world.rank):
            inputs, labels = batch(world.rank, step)
            optimizer.zero_grad()
            F.cross_entropy(wrapped(inputs), labels).backward()
            optimizer.step()
        before = state.state_dict()["memory"]
    return flat(model), before, state.state_dict()["memory"]


def test_a_rank_that_has_joined_sends_nothing_and_keeps_its_residual() -> None:
    results = run_ranks(uneven, 2)
    assert torch.equal(results[0][0], results[1][0])
    for name, own in results[1][1].items():
        assert torch.equal(results[1][2][name]["residual"], own["residual"])
        assert own["residual"].any()


def halves(world: World) -> tuple[torch.dtype, torch.dtype, bool]:
    model = net().bfloat16()
    wrapped, state = with_hook(model, density=0.05)
    inputs, labels = batch(world.rank, 0)
    F.cross_entropy(wrapped(inputs.bfloat16()), labels).backward()
    gradient, own = model.first.weight.grad, state.state_dict()["memory"]["first.weight"]
    assert gradient is not None
    return gradient.dtype, own["residual"].dtype, bool(gradient.isfinite().all() and gradient.any())


def test_weights_of_half_precision_have_a_memory_of_full_precision() -> None:
    assert run_ranks(halves, 2) == [(torch.bfloat16, torch.float32, True)] * 2


def autocast(world: World, settings: dict[str, Any] | None) -> tuple[Tensor, set[torch.dtype]]:
    """Five steps whose forward computes in bfloat16; the parameters, and the precisions of what is remembered."""
    model = net()
    wrapped, state = (DistributedDataParallel(model), None) if settings is None else with_hook(model, **settings)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1, momentum=0.9)
    for step in range(5):
        inputs, labels = batch(world.rank, step)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            scores = wrapped(inputs)
            assert scores.dtype == torch.bfloat16
            loss = F.cross_entropy(scores, labels)
        loss.backward()
        optimizer.step()
    memory = state.state_dict()["memory"] if state else {}
    return flat(model), {vector.dtype for own in memory.values() for vector in own.values()}


def test_under_autocast_density_one_is_plain_ddp_and_the_memory_is_of_full_precision() -> None:
    plain, everything, sparse = (run_ranks(autocast, 2, s) for s in (None, {"density": 1.0}, {"density": 0.05}))
    for (expected, _), (found, _), (other, precisions) in zip(plain, everything, sparse):
        assert torch.equal(found, expected)
        assert not torch.equal(other, expected)
        assert precisions == {torch.float32}


def broken_off(world: World) -> tuple[dict[str, Any], dict[str, Any], int]:
    """The memory before and after a backward that ends when the last layer's gradients are on their way."""
    model = net()
    wrapped, state = with_hook(model, {"bucket_cap_mb": 1e-4}, density=0.05)
    for step in range(4):
        inputs, labels = batch(world.rank, step)
        wrapped.zero_grad()
        if step == 3:
            before, sent = state.state_dict(), state.wire_bytes
            model.first.register_forward_hook(lambda module, inputs, output: output.register_hook(break_off) and None)
            with pytest.raises(RuntimeError, match="broken off"):
                F.cross_entropy(wrapped(inputs), labels).backward()
        else:
            F.cross_entropy(wrapped(inputs), labels).backward()
    return before, state.state_dict(), state.wire_bytes - sent


def test_a_backward_that_is_broken_off_leaves_the_memory_as_it_was() -> None:
    for before, after, sent in run_ranks(broken_off, 2):
        assert sent > 0
        assert_same_memory(before, after)


@pytest.mark.parametrize("codec", ["fp16", "int8", "4bit", "2bit", "sign"])
@pytest.mark.parametrize("density", [0.05, 1.0])
def test_what_values_lose_stays_in_the_residual(codec: str, density: float) -> None:
    """Mean of what was sent + mean residual = mean gradient; a tensor without a gradient stays without."""
    plain = run_ranks(gradients, 2, {"density": 1.0})[0][0]
    results = run_ranks(gradients, 2, {"density": density, "value_codec": codec})
    names = [name for name, _ in net().named_parameters()]
    for place, (name, expected) in enumerate(zip(names, plain)):
        residuals = [state["memory"][name]["residual"] for _, state, _ in results]
        sent = results[0][0][place]
        torch.testing.assert_close(sent + sum(residuals) / 2, expected, rtol=1e-5, atol=1e-7)
        assert torch.equal(sent, results[1][0][place])
    assert any(not torch.equal(sent, expected) for sent, expected in zip(results[0][0], plain))


def one_rank_skips(world: World, codec: str) -> tuple[Tensor, Tensor]:
    """(gradient, residual) of a layer that only rank 0 uses."""
    wrapped, state = with_hook(net(), {"find_unused_parameters": True}, density=0.1, value_codec=codec)
    inputs, labels = batch(world.rank, 0)
    F.cross_entropy(wrapped(inputs, skip=world.rank == 1), labels).backward()
    assert wrapped.module.middle.weight.grad is not None
    return wrapped.module.middle.weight.grad, state.state_dict()["memory"]["middle.weight"]["residual"]


@pytest.mark.parametrize("codec", ["int8", "4bit", "2bit", "sign"])
def test_unused_tensors_send_zeros_by_every_codec(codec: str) -> None:
    (mean, _), (same, residual) = run_ranks(one_rank_skips, 2, codec)
    assert torch.equal(mean, same)
    assert 0 < int(mean.count_nonzero()) <= 160
    assert not residual.any()
