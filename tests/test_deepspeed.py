"""The hook inside a DeepSpeed engine: the same steps as DDP with the hook, and reasons where it cannot work."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import flare_dist
from flare_dist.comm.distributed import World
from tests.ranks import run_ranks
from tests.test_ddp_hook import STEPS, batch, flat, net, train

FIRST_START_SECONDS = 300.0  # DeepSpeed compiles an op the first time


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


def trained(world: World, stage: int, density: float | None, changes: dict[str, Any]) -> tuple[Tensor, int]:
    """(parameters, steps of the hook) after twenty optimizer steps."""
    engine, model = start(world, stage, **changes)
    state = None if density is None else flare_dist.attach(engine, density=density)
    for number in range(STEPS * changes.get("gradient_accumulation_steps", 1)):
        inputs, labels = batch(world.rank, number)
        inputs = inputs.to(next(model.parameters()).dtype)
        engine.backward(F.cross_entropy(engine(inputs).float(), labels))
        engine.step()
    return flat(model).float(), state.step if state else 0


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
    (0, {}),  # for the second time
]


def everything(world: World) -> tuple[dict[Any, tuple[Tensor, int]], list[str]]:
    """All that the tests want to know, in one start of the ranks: importing DeepSpeed takes seconds."""
    results = {case: trained(world, case[0], case[2], VARIANTS[case[1]]) for case in CASES}
    said = []
    for stage, changes in REFUSED:
        engine, _ = start(world, stage, **changes)
        if not stage:
            flare_dist.attach(engine)
        with pytest.raises(ValueError, match="attach: ") as caught:
            flare_dist.attach(engine)
        said.append(str(caught.value))
    return results, said


@pytest.fixture(scope="module")
def ranks() -> list[tuple[dict[Any, tuple[Tensor, int]], list[str]]]:
    return run_ranks(everything, 2, seconds=FIRST_START_SECONDS)


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


def test_what_cannot_work_is_refused_with_the_reason(ranks: Any) -> None:
    for _, said in ranks:
        assert "ZeRO stage 2 reduces the gradients of every micro-batch apart" in said[0]
        assert "set zero_optimization.overlap_comm to false" in said[1]
        assert "exchanges sparsely already" in said[2]
