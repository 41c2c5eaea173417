"""The hook against plain DDP and against the algorithm in one process; whatever DDP does with its buckets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from flare_dist.comm.world import World
from flare_dist.compression.config import CompressionConfig
from flare_dist.hook.ddp import exchange_gradients
from flare_dist.hook.state import SparseHookState
from tests.helpers.hook import STEPS, assert_same_memory, batch, break_off, flat, net, train, with_hook
from tests.ranks import run_ranks


def oracle(size: int, config: CompressionConfig, accumulate: int = 1) -> tuple[Tensor, list[list[Tensor]]]:
    """The same in one process and plain PyTorch: (parameters, residuals by rank)."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    residuals = [[torch.zeros_like(p) for p in model.parameters()] for _ in range(size)]
    velocities = [[torch.zeros_like(p) for p in model.parameters()] for _ in range(size)]
    for step in range(STEPS):
        means = [torch.zeros_like(p) for p in model.parameters()]
        for rank in range(size):
            optimizer.zero_grad()
            for part in range(accumulate):
                inputs, labels = batch(rank, accumulate * step + part)
                F.cross_entropy(model(inputs), labels).backward()
            for p, mean, residual, velocity in zip(model.parameters(), means, residuals[rank], velocities[rank]):
                assert p.grad is not None
                brought = velocity.mul_(config.dgc_momentum).add_(p.grad) if config.rule == "dgc" else p.grad
                update = (residual + brought).flatten()
                k = -(-update.numel() * int(1000 * config.density_in(step + 1)) // 1000)
                kept = update.abs().sort(descending=True, stable=True).indices[:k]
                sent = torch.zeros_like(update).index_copy(0, kept, update[kept]).view_as(p)
                residual.copy_(update.view_as(p) - sent)
                velocity[sent != 0] = 0
                mean.add_(sent / size)
        for p, mean in zip(model.parameters(), means):
            p.grad = mean
        optimizer.step()
    return flat(model), residuals


@pytest.mark.parametrize("size", [2, 3, 4])
def test_density_one_is_plain_ddp(size: int) -> None:
    plain = run_ranks(train, size)
    for (hooked, _), (expected, _) in zip(run_ranks(train, size, {"density": 1.0}), plain):
        if size == 2:
            assert torch.equal(hooked, expected)
        torch.testing.assert_close(hooked, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("density", [0.01, 0.05])
def test_sparse_steps_equal_the_oracle(size: int, density: float) -> None:
    torch.set_num_threads(1)
    settings = {"density": density}
    expected, residuals = oracle(size, CompressionConfig(density=density))
    for rank, (hooked, state) in enumerate(run_ranks(train, size, settings)):
        torch.testing.assert_close(hooked, expected, rtol=0, atol=1e-6)
        assert state["step"] == STEPS
        for own, residual in zip(state["memory"].values(), residuals[rank]):
            torch.testing.assert_close(own["residual"], residual.flatten().view_as(own["residual"]), rtol=0, atol=1e-5)


def test_bucket_sizes_and_ddp_s_ways_of_forming_them_change_nothing() -> None:
    settings = {"density": 0.05, "dense_below": 4}
    expected = run_ranks(train, 2, settings)
    for ddp in ({"bucket_cap_mb": 0.001}, {"static_graph": True}, {"find_unused_parameters": True}):
        for (parameters, state), (same, kept) in zip(run_ranks(train, 2, settings, ddp), expected):
            assert torch.equal(parameters, same)
            assert_same_memory(state, kept)


@pytest.mark.parametrize(
    "settings",
    [
        {"density": 0.05, "error_feedback": "dgc", "momentum": 0.5},
        {"density": 0.05, "warmup": (0.5, 0.25), "warmup_rounds": 4},
    ],
    ids=["dgc", "warm-up"],
)
def test_momentum_correction_and_warm_up_equal_the_oracle(settings: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    expected, _ = oracle(2, CompressionConfig(**settings))
    for hooked, _ in run_ranks(train, 2, settings):
        torch.testing.assert_close(hooked, expected, rtol=0, atol=1e-6)


def test_accumulated_gradients_are_sent_once() -> None:
    torch.set_num_threads(1)
    expected, _ = oracle(2, CompressionConfig(density=0.05), accumulate=3)
    for hooked, state in run_ranks(train, 2, {"density": 0.05}, None, STEPS, 3):
        torch.testing.assert_close(hooked, expected, rtol=0, atol=1e-6)
        assert state["step"] == STEPS


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


@pytest.mark.parametrize("settings", [{"dense_below": 40}, {"dense_below": 10_000}, {"sparsifier": "randk"}])
def test_small_tensors_and_random_ones_do_not_depend_on_buckets(settings: dict[str, Any]) -> None:
    """With small buckets some hold nothing but biases, which are sent whole."""
    one, many = (run_ranks(train, 2, {"density": 0.05, **settings}, ddp) for ddp in (None, {"bucket_cap_mb": 1e-4}))
    for (parameters, memory), (expected, expected_memory) in zip(many, one):
        assert torch.equal(parameters, expected)
        assert_same_memory(memory, expected_memory)


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


def continued(world: World, at: int, other_buckets: bool) -> tuple[Tensor, dict[str, Any]]:
    """Twenty steps with a new model, DDP object and hook state after `at` of them, all loaded from the old ones."""
    model = net()
    ddp: dict[str, Any] = {}
    wrapped, state = with_hook(model, density=0.05, error_feedback="dgc", momentum=0.5)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    for step in range(STEPS):
        if step == at:
            fresh = net()
            fresh.load_state_dict(model.state_dict())
            model, saved = fresh, state.state_dict()
            ddp = {"bucket_cap_mb": 0.001} if other_buckets else {}
            wrapped, state = with_hook(model, ddp, density=0.05, error_feedback="dgc", momentum=0.5)
            state.load_state_dict(saved)
            optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
        optimizer.zero_grad()
        inputs, labels = batch(world.rank, step)
        F.cross_entropy(wrapped(inputs), labels).backward()
        optimizer.step()
    return flat(model), state.state_dict()


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


@pytest.mark.parametrize("other_buckets", [False, True])
def test_a_restored_state_goes_on_bitwise(other_buckets: bool) -> None:
    for (parameters, state), (expected, memory) in zip(
        run_ranks(continued, 2, 9, other_buckets), run_ranks(continued, 2, STEPS, False)
    ):
        assert torch.equal(parameters, expected)
        assert state["step"] == STEPS
        assert_same_memory(state, memory)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scope": "global"}, r"^compression\.scope: global would let DDP's bucket sizes decide"),
        ({"sparsifier": "threshold"}, r"^compression\.sparsifier: the size of what threshold sends"),
        ({"error_feedback": "ef21"}, r"^compression\.error_feedback: ef21 needs a server"),
        ({"density": 0.0}, r"^compression\.density: out of range, got .*; choose a number in \(0, 1\]"),
        ({"dense_below": -1}, r"^compression\.dense_below: out of range, got -1; choose at least 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SparseHookState(net(), **settings)


def test_the_memory_of_another_model_is_refused() -> None:
    state = SparseHookState(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"holds parameters that the model has not: head"):
        state.load_state_dict({"step": 1, "memory": {"head": {}}})


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


def test_a_tensor_with_more_entries_than_positions_can_name_is_refused_unless_dense() -> None:
    table = nn.Embedding(2**21, 2**10, device="meta")
    with pytest.raises(ValueError, match=r"^compression\.sparsifier: .* got 2,147,483,648 in weight; use dense"):
        SparseHookState(table, density=0.01)
    SparseHookState(table, density=1.0)
