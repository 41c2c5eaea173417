"""PyTorch's own hooks are counted and timed as ours is, and leave training as it is."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from flare_dist.analysis.links import Link, project
from flare_dist.comm.config import GradientsConfig
from flare_dist.comm.world import World
from flare_dist.config.config import Config
from flare_dist.hook.library import LibraryHookState, library_hook
from flare_dist.hook.meter import HookTraffic, StepClock
from flare_dist.rounds.build_run import set_up
from flare_dist.rounds.data_parallel import DataParallel
from flare_dist.rounds.gradient import gradient_round
from tests.helpers.runs import data_parallel, start
from tests.ranks import run_ranks

STEPS = 5


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 4))


def train(world: World, hook: str, counted: bool) -> tuple[Tensor, HookTraffic]:
    """Take five steps of SGD with a hook of PyTorch's, by itself or as we count it."""
    settings = GradientsConfig(hook=hook, powersgd_start=2)
    ddp = DistributedDataParallel(net(), bucket_cap_mb=1000)
    state = LibraryHookState(settings, None, seed=3)
    if counted:
        ddp.register_comm_hook(state, library_hook)
    elif hook == "powersgd":
        plain = powerSGD_hook.PowerSGDState(None, 1, 2, random_seed=3)
        ddp.register_comm_hook(plain, powerSGD_hook.powerSGD_hook)
    else:
        ddp.register_comm_hook(None, getattr(default_hooks, f"{hook}_compress_hook"))
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    draws = torch.Generator().manual_seed(world.rank)
    for _ in range(STEPS):
        optimizer.zero_grad()
        ddp(torch.randn(8, 12, generator=draws)).square().mean().backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in ddp.parameters()]), state.traffic


@pytest.mark.parametrize("hook", ["fp16", "bf16", "powersgd"])
def test_a_counted_hook_trains_as_it_does_uncounted(hook: str) -> None:
    for (own, traffic), (plain, _) in zip(run_ranks(train, 2, hook, True), run_ranks(train, 2, hook, False)):
        assert torch.equal(own, plain)
        total = len(own)
        if hook == "powersgd":
            # Two dense steps; then the factors of rank 1 of each matrix, and the biases whole.
            whole = 40 + 30 + 4
            factors = (12 + 40) + (40 + 30) + (30 + 4)
            expected = 2 * total + 3 * (whole + factors)
            assert traffic.uplink_bytes == 4 * expected
        else:
            assert traffic.uplink_bytes == 2 * total * STEPS
        assert traffic.wire_bytes == 2 * traffic.uplink_bytes  # a ring of two ranks


def test_a_clock_separates_making_payloads_from_waiting_for_them() -> None:
    clock, start = StepClock(), time.perf_counter()
    for wire_bytes in (10, 20):
        clock.hand_over()
        time.sleep(0.02)
        clock.send(wire_bytes)
    time.sleep(0.03)
    clock.come_back()
    assert clock.select_seconds >= 0.04
    assert clock.late_seconds >= 0.03
    assert clock.select_seconds + clock.late_seconds <= time.perf_counter() - start
    assert [wire for _, wire in clock.sent] == [10, 20]
    clock.begin_step()
    assert (clock.select_seconds, clock.late_seconds, clock.sent) == (0.0, 0.0, [])


def test_traffic_adds_up() -> None:
    assert HookTraffic(1, 2, 3, 4) + HookTraffic(10, 20, 30, 40) == HookTraffic(11, 22, 33, 44)


def two_rounds(world: World, settings: Config) -> list[dict[str, Any]]:
    run = set_up(settings, world)
    assert isinstance(run, DataParallel)
    return [gradient_round(round_, run) for round_ in (1, 2)]


@pytest.mark.parametrize("hook", ["sparse", "fp16", "powersgd"])
def test_seconds_are_spent_computing_selecting_or_communicating(hook: str) -> None:
    settings = data_parallel("x", gradients=GradientsConfig(hook=hook))
    for reports in run_ranks(two_rounds, 2, settings):
        for row in reports:
            assert row["select_seconds"] > 0
            assert row["communication_seconds"] > 0
            assert row["compute_seconds"] > 0
            together = row["compute_seconds"] + row["select_seconds"] + row["communication_seconds"]
            assert together <= 3 * row["round_seconds"]  # each the largest over the ranks
            assert 0 < row["late_seconds"] <= row["communication_seconds"]
            rest = row["round_seconds"] - (row["communication_seconds"] - row["late_seconds"])
            # Without end a link takes no time; what was waited for here is mostly unpacking, and stays.
            assert project(row, Link.parse("1000000Gbps"), "ranks") == pytest.approx(rest, rel=0.01)


@pytest.mark.parametrize("hook", ["fp16", "powersgd"])
def test_a_run_with_a_library_hook_saves_no_memory(hook: str, tmp_path: Path) -> None:
    settings = data_parallel(tmp_path / "run", gradients=GradientsConfig(hook=hook))
    start(settings, 2)
    longer = dataclasses.replace(
        settings,
        rounds=8,
        output_dir=str(tmp_path / "longer"),
        checkpoint=dataclasses.replace(settings.checkpoint, resume=str(tmp_path / "run")),
    )
    if hook == "fp16":
        start(longer, 2)
        assert json.loads((tmp_path / "longer" / "metrics.jsonl").read_text().splitlines()[-1])["round"] == 8
    else:
        with pytest.raises(Exception, match=r"gradients.hook: powersgd cannot go on from another run"):
            start(longer, 2)


def test_an_interrupted_run_of_powersgd_starts_over(tmp_path: Path) -> None:
    settings = data_parallel(tmp_path / "run", gradients=GradientsConfig(hook="powersgd"))
    start(settings, 2)
    (tmp_path / "run" / "summary.json").unlink()
    start(settings, 2)
    rows = [json.loads(line)["round"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows == list(range(7))
