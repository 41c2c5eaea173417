"""The hook inside a DeepSpeed engine takes the steps of DDP's."""

from __future__ import annotations

import gc
import os
import warnings
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import DeepSpeedPlugin
from torch import Tensor

import flare_dist
from flare_dist.comm.world import World
from flare_dist.engines.deepspeed_hook import attach_engine
from tests.helpers.engines import DEEPSPEED_SECONDS
from tests.helpers.hook import STEPS, batch, flat, make_accelerator, net, steps_of, train
from tests.ranks import run_ranks


def start(world: World, stage: int, **changes: Any) -> tuple[Any, torch.nn.Module]:
    """(engine, module) on CPU ranks; the process group is there already."""
    os.environ |= {"DS_ACCELERATOR": "cpu", "LOCAL_RANK": str(world.rank), "LOCAL_SIZE": str(world.size)}
    os.environ |= {"RANK": str(world.rank), "WORLD_SIZE": str(world.size), "MASTER_ADDR": "x", "MASTER_PORT": "1"}
    import deepspeed

    model = net()
    config = {
        "train_micro_batch_size_per_gpu": 8,
        "zero_optimization": {"stage": stage, "overlap_comm": False},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        **changes,
    }
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)
    return engine, model


def trained(
    world: World, stage: int, density: float | None, changes: dict[str, Any], **settings: Any
) -> tuple[Tensor, int]:
    """(parameters, steps of the hook) after twenty optimizer steps."""
    engine, model = start(world, stage, **changes)
    state = None if density is None else flare_dist.attach(engine, density=density, **settings)
    for number in range(STEPS * changes.get("gradient_accumulation_steps", 1)):
        inputs, labels = batch(world.rank, number)
        inputs = inputs.to(next(model.parameters()).dtype)
        engine.backward(F.cross_entropy(engine(inputs).float(), labels))
        engine.step()
    return flat(model).float(), state.step if state else 0


def thrown_away(world: World, stage: int, takes_back: bool) -> tuple[Tensor, int]:
    """The same for ten steps of which one's gradients are taken back, or which is left out."""
    engine, model = start(world, stage)
    state = flare_dist.attach(engine, density=0.05)
    for number in range(10):
        if number == 5 and not takes_back:
            continue
        inputs, labels = batch(world.rank, number)
        engine.backward(F.cross_entropy(engine(inputs), labels))
        if number == 5:
            assert state.take_back() == 1
            engine.zero_grad()
            engine.optimizer.zero_grad()
            continue
        engine.step()
        assert state.take_back() == 0
    memory = state.state_dict()["memory"].values()
    return torch.cat([flat(model), *(own["residual"].flatten() for own in memory)]), state.step


VARIANTS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"bf16": {"enabled": True}},
    "accumulated": {"gradient_accumulation_steps": 2},
}
CASES = [(stage, name, density) for stage in (0, 1) for name in VARIANTS for density in (None, 1.0)]
CASES += [(stage, "fp32", 0.05) for stage in (0, 1)]
REFUSED: list[tuple[int, dict[str, Any]]] = [
    (2, {}),
    (1, {"zero_optimization": {"stage": 1, "overlap_comm": True}}),
    (1, {"zero_optimization": {"stage": 1, "overlap_comm": False, "round_robin_gradients": True}}),
    (1, {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}),
    (0, {}),  # for the second time
]


def through_accelerate(world: World, directory: str, start: int, until: int) -> tuple[Tensor, int]:
    """Steps `start` to `until` of an engine that Accelerate's plugin made, from and to Accelerate's own checkpoint."""
    os.environ |= {"DS_ACCELERATOR": "cpu", "LOCAL_SIZE": str(world.size)}
    plugin = DeepSpeedPlugin(hf_ds_config={"train_micro_batch_size_per_gpu": 8, "zero_optimization": {"stage": 0}})
    accelerator = make_accelerator(world, deepspeed_plugin=plugin)
    parameters, state = steps_of(accelerator, world.rank, directory, until, start)
    return parameters, state["step"]


def everything(world: World, directory: str) -> tuple[dict[Any, tuple[Tensor, int]], list[str]]:
    """All cases in one start of the ranks: importing DeepSpeed takes seconds."""
    # At stage 1 it calls what torch 2.14 gave another name.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.all_gather_into_tensor` is deprecated", FutureWarning)
    results: dict[Any, tuple[Tensor, int]] = {
        case: trained(world, case[0], case[2], VARIANTS[case[1]]) for case in CASES
    }
    for stage in (0, 1):
        for takes_back in (False, True):
            results[stage, "thrown away", takes_back] = thrown_away(world, stage, takes_back)
    results["clipped"] = trained(world, 0, 0.05, {}, clip_norm=0.1)
    results["accelerate"] = through_accelerate(world, directory, 0, 9)
    results["accelerate, resumed"] = through_accelerate(world, directory, 9, STEPS)
    said = []
    for stage, changes in REFUSED:
        engine, _ = start(world, stage, **changes)
        if not stage:
            flare_dist.attach(engine)
        with pytest.raises(ValueError, match="attach: ") as caught:
            flare_dist.attach(engine)
        said.append(str(caught.value))
    with pytest.raises(ValueError, match=r"^gradients\.clip_norm: ZeRO stage 1 .*, got 0\.1; use stage 0, or"):
        flare_dist.attach(start(world, 1)[0], clip_norm=0.1)
    for stage in (0, 1, 3):
        engine, model = start(world, stage)
        for given in (engine, model) if stage else (engine,):
            with pytest.raises(ValueError, match=r"^outer: DeepSpeed overwrites the model's weights by its own"):
                flare_dist.outer(given)
    return results, said


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[dict[Any, tuple[Tensor, int]], list[str]]]:
    return run_ranks(everything, 2, str(tmp_path_factory.mktemp("accelerate")), seconds=DEEPSPEED_SECONDS)


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("variant", VARIANTS)
def test_density_one_is_plain_deepspeed(ranks: Any, stage: int, variant: str) -> None:
    for results, _ in ranks:
        parameters, steps = results[stage, variant, 1.0]
        assert torch.equal(parameters, results[stage, variant, None][0])
        assert steps == STEPS


@pytest.mark.parametrize("stage", [0, 1])
def test_sparse_steps_are_those_of_ddp(ranks: Any, stage: int) -> None:
    for (results, _), (expected, _) in zip(ranks, run_ranks(train, 2, {"density": 0.05})):
        parameters, steps = results[stage, "fp32", 0.05]
        torch.testing.assert_close(parameters, expected, rtol=0, atol=1e-6)
        assert steps == STEPS


def test_clipped_steps_are_those_of_ddp(ranks: Any) -> None:
    clipped, free = (run_ranks(train, 2, {"density": 0.05, "clip_norm": limit}) for limit in (0.1, None))
    for (results, _), (expected, _), (other, _) in zip(ranks, clipped, free):
        torch.testing.assert_close(results["clipped"][0], expected, rtol=0, atol=1e-6)
        assert not torch.allclose(expected, other, rtol=0, atol=1e-3)


@pytest.mark.parametrize("stage", [0, 1])
def test_a_step_taken_back_is_a_step_that_never_was(ranks: Any, stage: int) -> None:
    for results, _ in ranks:
        (found, steps), (expected, same) = (results[stage, "thrown away", takes_back] for takes_back in (True, False))
        assert torch.equal(found, expected)
        assert steps == same == 9


def test_accelerate_s_plugin_trains_and_resumes_with_the_hook(ranks: Any) -> None:
    for results, _ in ranks:
        parameters, steps = results["accelerate, resumed"]
        assert torch.equal(parameters, results[0, "fp32", 0.05][0])
        assert steps == STEPS


def test_what_cannot_work_is_refused_with_the_reason(ranks: Any) -> None:
    for _, said in ranks:
        assert "ZeRO stage 2 reduces the gradients of every micro-batch apart" in said[0]
        assert "set zero_optimization.overlap_comm to false" in said[1]
        assert "set zero_optimization.round_robin_gradients to false" in said[2]
        assert "data_types.grad_accum_dtype keeps a second set of gradients" in said[3]
        assert "exchanges sparsely already" in said[4]


class StageZero:
    """The parts of an engine that attaching reads, without what DeepSpeed itself keeps of one."""

    data_parallel_group = None
    global_steps = 0
    has_moe_layers = False
    optimizer = None
    pipeline_parallelism = False

    def __init__(self) -> None:
        self.module = net()

    def zero_optimization_stage(self) -> int:
        return 0

    def fp16_enabled(self) -> bool:
        return False

    def get_data_types(self) -> tuple[torch.dtype, torch.dtype]:
        return torch.float32, torch.float32


def test_the_state_does_not_keep_the_engine_alive() -> None:
    engine: Any = StageZero()
    state = attach_engine(engine, density=0.05)
    assert state.scaler is not None
    assert not state.scaler.is_enabled()
    assert state.unapplied.updates() == 0
    alive = weakref.ref(engine)
    del engine
    gc.collect()
    assert alive() is None
    assert state.state_dict()["step"] == 0
