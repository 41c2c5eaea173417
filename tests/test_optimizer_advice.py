"""The optimizers that are handed over to attach: advice, adaptation, and a check of the gradients they step by."""

from __future__ import annotations

import copy
import io
import logging
import os
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Adafactor, Adam, AdamW, Optimizer

import flare_dist
from flare_dist.comm.world import World
from flare_dist.hook.advice import advice, check_preconditioned
from flare_dist.hook.momentum import NoMomentum, arrives_late
from flare_dist.hook.witnesses import GradientWatch, _compare
from tests.helpers.engines import DEEPSPEED_SECONDS
from tests.helpers.hook import assert_same_memory, batch, break_off, flat, make_accelerator, net
from tests.ranks import run_ranks

SPARSE: dict[str, Any] = {"density": 0.05}


class Lion(SGD):
    """An optimizer that has only the name of Lion."""


class FusedAdam(AdamW):
    """An Adam of another library."""


def advised(make: Callable[[Any], Optimizer], **settings: Any) -> str | None:
    model = net()
    state = flare_dist.SparseHookState(model, **{**SPARSE, **settings})
    return advice(state, make(model.parameters()))


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (
            lambda p: AdamW(p, lr=0.002, betas=(0.9, 0.99), weight_decay=0.1),
            "AdamW has beta1 0.9, and at density 0.05 the residual acts as momentum already; write optimizer = "
            "torch.optim.AdamW(model.parameters(), lr=0.002, betas=(0.0, 0.999), weight_decay=0.1) (or give "
            "adapt=True), with attach(..., clip_norm=0.5): loss 1.932 against 2.666 with beta1 0.9, for a GPT at "
            "density 0.03 on 2 ranks, clipped to 0.5 (docs",
        ),
        (lambda p: Adam(p, amsgrad=True), "torch.optim.Adam(model.parameters(), lr=0.001, betas=(0.0, 0.999), amsgrad"),
        (lambda p: FusedAdam([{"params": [each]} for each in p]), " FusedAdam(groups, lr=0.001"),
        (
            lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4),
            "SGD has Nesterov momentum 0.9, and at density 0.05 the residual acts as momentum already; write optimizer "
            "= torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.0005) (or give adapt=True), alone or with "
            "attach(..., error_feedback='dgc', momentum=0.9): accuracy .393 against .342 with momentum in SGD and .390 "
            "dense, for ResNet-18 at density 0.01 on 2 ranks (docs",
        ),
        (
            Lion,
            "write optimizer = torch.optim.AdamW(model.parameters(), lr=..., betas=(0.0, 0.999), weight_decay=0) with "
            "a learning rate of its own: 1.733 with clip_norm=0.5 against 3.118, for a GPT",
        ),
        (
            Adafactor,
            "Adafactor estimates second moments from whole rows and columns, and at density 0.05 few entries arrive "
            "in a step; write optimizer = torch.",
        ),
        (Adafactor, "1.733 with clip_norm=0.5 against 2.314, for a GPT at density 0.01 on 2 ranks (docs"),
    ],
    ids=["adamw", "adam", "other library", "sgd", "lion", "adafactor", "adafactor's figure"],
)
def test_advice_names_the_line_to_write(make: Callable[[Any], Optimizer], line: str) -> None:
    assert line in (advised(make) or "")


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (AdamW, {"density": 1.0}),
        (lambda p: SGD(p, momentum=0.9), {"density": 1.0, "value_codec": "fp16"}),
        (AdamW, {"density": 0.3}),
        (AdamW, {"error_feedback": "none"}),
        (AdamW, {"dense_below": 10**6}),
        (lambda p: AdamW(p, betas=(0.0, 0.999)), {}),
        (SGD, {}),
        (torch.optim.RMSprop, {}),
    ],
    ids=["dense", "dense fp16", "most arrive soon", "no residual", "whole tensors", "beta1 0", "plain sgd", "rmsprop"],
)
def test_no_advice_if_nothing_arrives_late_or_nothing_is_wrong(
    make: Callable[[Any], Optimizer], settings: dict[str, Any]
) -> None:
    assert advised(make, **settings) is None


@pytest.mark.parametrize(
    ("density", "measured"),
    [(0.15, "1.986 against 2.303"), (0.04, "1.932 against 2.666"), (0.01, "2.062 against 2.784"), (1e-4, "2.422 agai")],
)
def test_the_figure_is_that_of_the_nearest_density_whether_or_not_gradients_are_clipped(
    density: float, measured: str
) -> None:
    for settings in ({}, {"clip_norm": 0.5}):
        assert f": loss {measured}" in (advised(AdamW, density=density, **settings) or "")


def test_clipping_is_not_advised_where_it_is_done_or_refused() -> None:
    assert "clip_norm" not in (advised(AdamW, clip_norm=1.0) or "clip_norm")
    model = net()  # ZeRO stage 1 refuses it
    state = flare_dist.SparseHookState(model, **SPARSE)
    line = advice(state, AdamW(model.parameters()), takes_clip_norm=False)
    assert "clip_norm" not in (line or "clip_norm")


def test_momentum_beside_that_of_dgc_is_advised_against() -> None:
    line = advised(lambda p: SGD(p, momentum=0.9), error_feedback="dgc") or ""
    assert "dgc has momentum of its own" in line
    assert "alone or" not in line
    assert "alone or" not in (advised(lambda p: SGD(p, momentum=0.9), preconditioner="adam") or "alone or")
    assert advised(lambda p: SGD(p, momentum=0.9), error_feedback="dgc", density=0.3)


def test_the_advice_follows_the_line_it_gives() -> None:
    model = net()
    state = flare_dist.SparseHookState(model, **SPARSE)
    for old in (AdamW(model.parameters(), eps=1e-6), SGD(model.parameters(), momentum=0.9, nesterov=True)):
        line = (advice(state, old) or "").split("optimizer = ")[1].split(" (or give")[0]
        new = eval(line, {"torch": torch, "model": model})
        assert advice(state, new) is None
        assert new.defaults["lr"] == old.defaults["lr"]
        assert new.defaults.get("eps") == old.defaults.get("eps")


def test_an_adam_behind_a_preconditioner_is_refused_with_the_line_to_write() -> None:
    adam = AdamW(net().parameters(), lr=0.002)
    with pytest.raises(ValueError, match=r"write optimizer = torch\.optim\.SGD\(model\.parameters\(\), lr=0\.002, wei"):
        check_preconditioned(adam, "adam", is_sharded=False)
    with pytest.raises(ValueError, match=r"weight_decay=0\.01\); ZeRO stage 1 .*zero_allow_untested_optimizer: true"):
        check_preconditioned(adam, "adam", is_sharded=True)
    for kind in (torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.Rprop):
        with pytest.raises(ValueError, match=rf"and {kind.__name__} would scale them once more; write optimizer ="):
            check_preconditioned(kind(net().parameters()), "adam", is_sharded=False)
    check_preconditioned(SGD(net().parameters()), "adam", is_sharded=True)
    check_preconditioned(adam, "none", is_sharded=False)


@pytest.mark.parametrize("first", [1.0, 0.3])
def test_while_a_warm_up_sends_much_momentum_stays(first: float) -> None:
    state = flare_dist.SparseHookState(net(), **SPARSE, warmup=(first, 0.1), warmup_rounds=2)
    late = []
    for number in range(6):
        state.step = number
        late.append(arrives_late(state))
    assert late == [True, False, False, True, True, True]  # before the first step: of the density that it leads to


@pytest.mark.parametrize("make", [AdamW, lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True)], ids=["adamw", "sgd"])
@pytest.mark.parametrize("scheduler_first", [True, False])
def test_an_adapted_optimizer_never_steps_with_momentum(
    make: Callable[[Any], Optimizer], scheduler_first: bool
) -> None:
    model = net()
    state = flare_dist.SparseHookState(model, **SPARSE)
    optimizer = make(model.parameters())
    before = copy.deepcopy(optimizer.state_dict())

    def one_cycle() -> Any:
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=10)

    scheduler = one_cycle() if scheduler_first else None
    NoMomentum(state, optimizer)
    scheduler = scheduler or one_cycle()
    seen: list[tuple[float, bool]] = []

    def look(optimizer: Optimizer, *step: Any) -> None:
        for group in optimizer.param_groups:
            seen.append((group["betas"][0] if "betas" in group else group["momentum"], group.get("nesterov", False)))

    optimizer.register_step_pre_hook(look)
    cycled = set()
    for number in range(8):
        if number == 4:
            optimizer.load_state_dict(before | {"state": optimizer.state_dict()["state"]})
            look(optimizer)
        if number == 6:
            optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
        inputs, labels = batch(0, number)
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        if number < 4:
            scheduler.step()
            group = optimizer.param_groups[0]
            cycled.add(group["betas"][0] if "betas" in group else group["momentum"])
    assert len(cycled) > 1
    assert set(seen) == {(0.0, False)}


def test_an_adapted_optimizer_takes_the_steps_of_one_written_so() -> None:
    results = []
    for adapt in (True, False):
        model = net()
        optimizer = AdamW(model.parameters(), betas=(0.9 if adapt else 0.0, 0.99))
        state = flare_dist.SparseHookState(model, **SPARSE)
        if adapt:
            NoMomentum(state, optimizer)
        for number in range(5):
            inputs, labels = batch(0, number)
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
        results.append(flat(model))
    assert torch.equal(*results)


def test_an_optimizer_outlives_the_state_that_adapted_it() -> None:
    model = net()
    optimizer = AdamW(model.parameters())
    NoMomentum(flare_dist.SparseHookState(model, **SPARSE), optimizer)
    optimizer.param_groups[0]["betas"] = (0.9, 0.999)
    optimizer.step()
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)


class Heard(logging.Handler):
    """The lines that the package logs."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        logging.getLogger("flare_dist").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def wrapped(make: Callable[[Any], Any], **settings: Any) -> tuple[DistributedDataParallel, Any, Any]:
    """(ddp, optimizer, state) with the optimizer handed over."""
    ddp = DistributedDataParallel(net(), **settings.pop("ddp", {}))
    optimizer = make(list(ddp.parameters()))
    return ddp, optimizer, flare_dist.attach(ddp, optimizer=optimizer, **{**SPARSE, **settings})


def handing(world: World) -> dict[str, Any]:
    """What attach says of optimizers that are handed over, and leaves of them."""
    heard = Heard()
    seen: dict[str, Any] = {}
    _, optimizer, _ = wrapped(AdamW)
    seen["betas"] = optimizer.param_groups[0]["betas"]
    _, optimizer, _ = wrapped(AdamW, adapt=True)
    seen["adapted"] = optimizer.param_groups[0]["betas"]
    _, optimizer, _ = wrapped(AdamW, adapt=True, density=1.0)
    seen["adapted at density 1"] = optimizer.param_groups[0]["betas"]
    wrapped(lambda p: [SGD(p[:2], momentum=0.9), Adam(p[2:])])

    accelerator = make_accelerator(world)
    model, prepared = accelerator.prepare(module := net(), AdamW(module.parameters()))
    flare_dist.attach(accelerator, model, optimizer=prepared, adapt=True, **SPARSE)
    seen["accelerated"] = prepared.param_groups[0]["betas"]
    seen["lines"] = list(heard.lines)

    def refused(call: Callable[[], Any]) -> None:
        with pytest.raises(ValueError, match=r"attach: ") as caught:
            call()
        seen.setdefault("refused", []).append(str(caught.value))

    ddp = DistributedDataParallel(net())
    own, other = AdamW(ddp.parameters()), AdamW(net().parameters())
    refused(lambda: flare_dist.attach(ddp, optimizer=other))
    refused(lambda: flare_dist.attach(ddp, optimizer=[own, other]))
    refused(lambda: flare_dist.attach(ddp, optimizer=[]))
    refused(lambda: flare_dist.attach(ddp, optimizer=ddp.parameters()))
    refused(lambda: flare_dist.attach(ddp, adapt=True))
    refused(lambda: flare_dist.attach(ddp, optimizer=own, preconditioner="adam"))
    refused(lambda: flare_dist.attach(net(), optimizer=AdamW(ddp.parameters())))
    assert not ddp._comm_hooks
    assert not own._optimizer_step_pre_hooks
    flare_dist.attach(ddp, optimizer=own)  # what was refused has left nothing
    return seen


def test_an_optimizer_handed_over_is_advised_adapted_or_refused() -> None:
    first, second = run_ranks(handing, 2)
    for seen in (first, second):
        assert seen["betas"] == seen["adapted at density 1"] == (0.9, 0.999)
        assert seen["adapted"] == seen["accelerated"] == (0.0, 0.999)
        words = ["AdamW holds no", "AdamW holds no", "empty list", "got generator", "adapt=True", "preconditioner=adam"]
        for word, line in zip([*words, "AdamW holds no"], seen["refused"], strict=True):
            assert word in line
    assert second["lines"] == []
    assert [line.split(",")[0] for line in first["lines"]] == [
        "attach: AdamW has beta1 0.9",
        "attach: SGD has momentum 0.9",
        "attach: Adam has beta1 0.9",
    ]


def changed(how: str, ddp: nn.Module, optimizer: Any) -> None:
    """Change the gradients after backward."""
    if how == "clipped by norm":
        nn.utils.clip_grad_norm_(ddp.parameters(), 1e-3)
    elif how == "clipped by value":
        nn.utils.clip_grad_value_(ddp.parameters(), 1e-4)
    elif how == "hardly clipped":
        nn.utils.clip_grad_norm_(ddp.parameters(), 1e6)


def steps(world: World, how: str, make: Callable[[Any], Any] = SGD, count: int = 3, **settings: Any) -> list[str]:
    """Warnings of a few steps whose gradients are changed."""
    ddp, optimizer, _ = wrapped(make, **settings)
    scaler = settings.get("scaler") or torch.amp.GradScaler("cpu", enabled=how == "scaler")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number in range(count):
            inputs, labels = batch(world.rank, number)
            optimizer.zero_grad()
            scaler.scale(F.cross_entropy(ddp(inputs), labels)).backward()
            changed(how, ddp, optimizer)
            scaler.step(optimizer)
            scaler.update()
    return [str(each.message) for each in caught]


def alarms(world: World) -> dict[str, list[str]]:
    seen = {how: steps(world, how) for how in ("clipped by norm", "clipped by value", "scaler")}
    seen["fused"] = steps(world, "scaler", lambda p: AdamW(p, betas=(0.0, 0.999), fused=True))
    seen["views"] = steps(world, "clipped by norm", ddp={"gradient_as_bucket_view": True, "bucket_cap_mb": 1e-3})
    return seen


def test_gradients_that_are_not_the_hook_s_are_warned_of_once_by_one_rank() -> None:
    seen, others = run_ranks(alarms, 2)
    for how, said in seen.items():
        assert len(said) == 1, how
        assert ("attach with scaler=scaler" if how in ("scaler", "fused") else "turn clipping off") in said[0]
    assert " times what the hook returned" in seen["clipped by norm"][0]
    assert "1.53e-05 times" in seen["scaler"][0]  # 1 / 65536
    assert "are not what the hook returned" in seen["clipped by value"][0]
    assert "unscaled inside the step" in seen["fused"][0]
    assert not any(others.values())


def no_alarms(world: World) -> None:
    """Everything that people do between a backward and a step; a warning is an error here."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1000.0, growth_interval=2, growth_factor=3.0)
    rules: list[dict[str, Any]] = [{}, {"error_feedback": "dgc"}, {"error_feedback": "none"}, {"value_codec": "fp16"}]
    for settings in rules:
        assert steps(world, "hardly clipped", **settings) == []
    assert steps(world, "clipped by norm", density=1.0) == []
    assert steps(world, "", count=6, scaler=scaler) == []
    fused = torch.amp.GradScaler("cpu", init_scale=1000.0)
    assert steps(world, "", lambda p: AdamW(p, betas=(0.0, 0.99), fused=True), scaler=fused) == []
    for name in ("gradient_as_bucket_view", "find_unused_parameters", "static_graph"):
        assert steps(world, "", ddp={name: True}) == []
    for make in (accumulate, zeroed, taken_back, broken_off, joined, split, unused):
        ddp, optimizer, state = wrapped(
            (lambda p: [SGD(p[:2], 0.1), SGD(p[2:], 0.1)]) if make is split else SGD,
            ddp={"find_unused_parameters": make is unused},
        )
        make(world, ddp, optimizer, state)


def loss(ddp: nn.Module, world: World, number: int, **options: Any) -> Tensor:
    inputs, labels = batch(world.rank, number)
    return F.cross_entropy(ddp(inputs, **options), labels)


def accumulate(world: World, ddp: DistributedDataParallel, optimizer: Optimizer, state: Any) -> None:
    for number in range(3):
        with ddp.no_sync():
            loss(ddp, world, number).backward()
        loss(ddp, world, number + 10).backward()
        optimizer.step()
        optimizer.zero_grad()
    for number in range(3):  # the wrong way round, and synchronised twice
        loss(ddp, world, number).backward()
        with ddp.no_sync():
            loss(ddp, world, number + 10).backward()
        optimizer.step()
        optimizer.step()
        loss(ddp, world, number).backward()
        loss(ddp, world, number + 1).backward()
        optimizer.step()
    with ddp.no_sync():  # local steps
        for number in range(3):
            optimizer.zero_grad()
            loss(ddp, world, number).backward()
            optimizer.step()


def zeroed(world: World, ddp: DistributedDataParallel, optimizer: Optimizer, state: Any) -> None:
    for number in range(4):
        loss(ddp, world, number).backward()
        optimizer.zero_grad(set_to_none=number % 2 == 0)
        optimizer.step()


def taken_back(world: World, ddp: DistributedDataParallel, optimizer: Optimizer, state: Any) -> None:
    for number in range(4):
        optimizer.zero_grad()
        loss(ddp, world, number).backward()
        if number % 2:
            nn.utils.clip_grad_value_(ddp.parameters(), 1e-4)
            state.take_back()
        optimizer.step()


def broken_off(world: World, ddp: DistributedDataParallel, optimizer: Optimizer, state: Any) -> None:
    loss(ddp, world, 0).backward()
    optimizer.step()
    handle = ddp.module.first.register_forward_hook(lambda module, inputs, out: out.register_hook(break_off) and None)
    with pytest.raises(RuntimeError, match="broken off"):
        loss(ddp, world, 1).backward()
    handle.remove()
    optimizer.step()


def joined(world: World, ddp: DistributedDataParallel, optimizer: Optimizer, state: Any) -> None:
    with ddp.join():
        for number in range(2 + 3 * world.rank):
            optimizer.zero_grad()
            loss(ddp, world, number).backward()
            optimizer.step()


def split(world: World, ddp: DistributedDataParallel, optimizer: Any, state: Any) -> None:
    for number in range(4):
        loss(ddp, world, number).backward()
        for each in optimizer[: 1 + number % 2]:
            each.step()
            each.zero_grad()


def unused(world: World, ddp: DistributedDataParallel, optimizer: Optimizer, state: Any) -> None:
    for number in range(4):
        if number != 2:
            optimizer.zero_grad()
        loss(ddp, world, number, skip=number > 0).backward()
        optimizer.step()


class Late:
    """An event of a GPU that is reached when it is asked for the second time."""

    def __init__(self) -> None:
        self._asked = 0

    def query(self) -> bool:
        self._asked += 1
        return self._asked > 1


def test_figures_of_a_gpu_are_read_when_they_have_arrived() -> None:
    model = net()
    optimizer = SGD(model.parameters())
    watch = GradientWatch(list(model.parameters()))
    watch._figures = torch.tensor([0.5, 0.0, 1.0, 0.5, 0.4])
    watch._event = Late()  # type: ignore[assignment]
    watch.check(optimizer)
    with pytest.warns(UserWarning, match=r"are 0\.4 times what the hook returned: clipped or scaled after backward"):
        watch.check(optimizer)
    watch.check(optimizer)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_comparison_on_a_gpu_waits_for_nothing() -> None:
    sent = torch.randn(100, device="cuda")
    watch = GradientWatch([sent])
    watch._keep(_compare(sent, sent / 2, None))  # so that memory to copy to is there
    torch.cuda.synchronize()
    with pytest.warns(UserWarning, match=r"0\.5 times"):
        watch._look()
    torch.cuda.set_sync_debug_mode("error")
    try:
        watch._keep(_compare(sent, sent, torch.ones((), device="cuda")))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_nothing_else_between_backward_and_step_is_warned_of() -> None:
    run_ranks(no_alarms, 2)


def bits(world: World, hands_over: bool) -> tuple[Tensor, dict[str, Any]]:
    ddp = DistributedDataParallel(net(), bucket_cap_mb=1e-3)
    optimizer = SGD(ddp.parameters(), lr=0.1)
    state = flare_dist.attach(ddp, optimizer=optimizer if hands_over else None, **SPARSE)
    for number in range(5):
        optimizer.zero_grad()
        loss(ddp, world, number).backward()
        optimizer.step()
    copied = copy.deepcopy(ddp)  # the copy of a model has no hook
    with pytest.raises(RuntimeError, match="attach again"):
        loss(copied, world, 0).backward()
    torch.save(ddp, io.BytesIO())
    return flat(ddp.module), state.state_dict()


def test_handing_over_an_optimizer_changes_no_bits() -> None:
    for (parameters, memory), (expected, same) in zip(run_ranks(bits, 2, True), run_ranks(bits, 2, False)):
        assert torch.equal(parameters, expected)
        assert_same_memory(memory, same)


def sharded(world: World) -> dict[str, Any]:
    """The same inside DeepSpeed, whose optimizer holds flat partitions at ZeRO stage 1."""
    os.environ |= {"DS_ACCELERATOR": "cpu", "LOCAL_RANK": str(world.rank), "LOCAL_SIZE": str(world.size)}
    os.environ |= {"RANK": str(world.rank), "WORLD_SIZE": str(world.size), "MASTER_ADDR": "x", "MASTER_PORT": "1"}
    import deepspeed

    # At stage 1 it calls what torch 2.14 gave another name.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.all_gather_into_tensor` is deprecated", FutureWarning)
    heard = Heard()
    seen: dict[str, Any] = {}
    for stage in (0, 1):
        model = net()
        config = {
            "train_micro_batch_size_per_gpu": 8,
            "zero_optimization": {"stage": stage, "overlap_comm": False},
            "zero_force_ds_cpu_optimizer": False,
            "gradient_clipping": 1.0,
        }
        given = AdamW(model.parameters())
        engine, optimizer, *_ = deepspeed.initialize(
            model=model, optimizer=given, config=config, dist_init_required=False
        )
        with pytest.raises(ValueError, match="AdamW holds no trained parameter"):
            flare_dist.attach(engine, optimizer=AdamW(net().parameters()), **SPARSE)
        with pytest.raises(ValueError, match="zero_allow_untested" if stage else r"torch\.optim\.SGD\("):
            flare_dist.attach(engine, optimizer=given, preconditioner="adam", **SPARSE)
        with pytest.raises(ValueError, match=r"AdamW would scale them once more; write optimizer = torch\.optim\.SGD"):
            flare_dist.attach(engine, preconditioner="adam", **SPARSE)  # it has the optimizer anyway
        with pytest.warns(UserWarning, match=r"DeepSpeed clips .* to norm 1.*gradient_clipping: 0"):
            flare_dist.attach(engine, optimizer=(given, optimizer)[stage], adapt=stage == 1, **SPARSE)
        for number in range(2):
            inputs, labels = batch(world.rank, number)
            engine.backward(F.cross_entropy(engine(inputs), labels))
            engine.step()
        seen[f"betas {stage}"] = given.param_groups[0]["betas"]
    return seen | {"lines": heard.lines}


def test_an_optimizer_inside_deepspeed_is_found_by_the_parameters_it_steps() -> None:
    for rank, seen in enumerate(run_ranks(sharded, 2, seconds=DEEPSPEED_SECONDS)):
        assert (seen["betas 0"], seen["betas 1"]) == ((0.9, 0.999), (0.0, 0.999))
        assert [line.split(",")[0] for line in seen["lines"]] == [] if rank else ["attach: AdamW has beta1 0.9"]
