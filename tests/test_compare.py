"""PyTorch's own hooks, counted and timed as ours is, and `flare-dist compare`, which sets them side by side."""

from __future__ import annotations

import csv
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
from flare_dist.cli import main
from flare_dist.comm.config import GradientsConfig
from flare_dist.comm.world import World
from flare_dist.compression.config import CompressionConfig
from flare_dist.config.config import Config, load_config, with_arguments
from flare_dist.engines.config import EngineConfig
from flare_dist.hook.library import LibraryHookState, library_hook
from flare_dist.hook.meter import HookTraffic, StepClock
from flare_dist.rounds.data_parallel import DataParallel
from flare_dist.rounds.gradient import gradient_round
from flare_dist.rounds.setup import set_up
from flare_dist.run.checks import check_run, keys_without_effect
from flare_dist.studies.techniques import DIFFERENCES, USUAL, find_techniques
from tests.ranks import run_ranks
from tests.test_gradient import config
from tests.test_trainer import start

ROOT = Path(__file__).parent.parent
STEPS = 5
PUBLISHED = {
    "baseline": [],
    "compression": ["methods/topk_int8"],
    "fp16_compression": ["methods/topk_int8", "methods/fp16_training"],
}


def published(name: str) -> Config:
    """One of the three experiments of a published comparison."""
    return load_config(*[ROOT / "configs" / f"{layer}.yaml" for layer in ["compare/deepspeed", *PUBLISHED[name]]])


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 4))


def train(world: World, hook: str, counted: bool) -> tuple[Tensor, HookTraffic]:
    """Five steps of SGD with a hook of PyTorch's, by itself or as we count it."""
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
def test_a_counted_hook_does_what_it_does_by_itself(hook: str) -> None:
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


def test_a_clock_tells_making_payloads_from_waiting_for_them() -> None:
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


def play(world: World, settings: Config) -> list[dict[str, Any]]:
    run = set_up(settings, world)
    assert isinstance(run, DataParallel)
    return [gradient_round(round_, run) for round_ in (1, 2)]


@pytest.mark.parametrize("hook", ["sparse", "fp16", "powersgd"])
def test_seconds_are_of_computing_selecting_or_communicating(hook: str) -> None:
    settings = config("x", gradients=GradientsConfig(hook=hook))
    for reports in run_ranks(play, 2, settings):
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
def test_a_run_with_another_hook_remembers_nothing(hook: str, tmp_path: Path) -> None:
    settings = config(tmp_path / "run", gradients=GradientsConfig(hook=hook))
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
    settings = config(tmp_path / "run", gradients=GradientsConfig(hook="powersgd"))
    start(settings, 2)
    (tmp_path / "run" / "summary.json").unlink()
    start(settings, 2)
    rows = [json.loads(line)["round"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows == list(range(7))


def test_compare_trains_each_technique_with_the_same_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["compare", "--config", str(ROOT / "configs" / "quickstart_gradient.yaml"), "--rounds", "2"]
    command += ["--output_dir", str(tmp_path / "out"), "--ranks", "2"]
    command += ["--techniques", "full_precision,fp16,topk", "--link", "100Mbps/shared", "--target", "0.2"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    for word in ("full_precision", "fp16", "topk", "bytes up", "seconds computing", "100Mbps/shared"):
        assert word in shown
    with (tmp_path / "out" / "results.csv").open() as file:
        rows = {row["technique"]: row for row in csv.DictReader(file)}
    sent = {name: float(row["uplink_bytes"]) for name, row in rows.items()}
    assert sent["full_precision"] == 2 * sent["fp16"]
    assert sent["topk"] < sent["fp16"] / 20
    runs = {name: load_config(Path(row["directory"]) / "config.yaml") for name, row in rows.items()}
    same = {(r.clients, r.data, r.model, r.engine, r.eval_every, r.rounds, r.seed) for r in runs.values()}
    assert len(same) == 1
    assert (tmp_path / "out" / "bandwidth.html").exists()
    assert main(command) == 0  # finished runs are not repeated


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--techniques", "topk,zip"], "--techniques: unknown technique 'zip' (choose from full_precision, fp16,"),
        (["--techniques", "topk,topk"], "--techniques: the same technique twice"),
        (["--mode", "federated"], "mode: compare is about gradients; it needs mode=gradient, not federated"),
        (["--techniques", "topk,fp16_training"], "engine.mixed_precision: fp16 needs a GPU"),
        (
            ["--tune", "compression.value_codec=fp16,int8"],
            "--tune: compression.value_codec is what tells techniques apart",
        ),
        (["--techniques", "fp16,topk", "--tune", "clients.lr=0.1,-1"], "clients.lr: must be positive"),
        (["--target", "2"], "--target: an accuracy in (0, 1], got 2.0"),
        (["--gradients.hook", "fp32"], "gradients.hook: must be one of sparse, fp16, bf16, powersgd, got 'fp32'"),
        (["--gradients.powersgd_rank", "0"], "gradients.powersgd_rank: must be at least 1, got 0"),
        (["--gradients.powersgd_start", "1"], "gradients.powersgd_start: must be at least 2 (PyTorch's), got 1"),
        (
            ["--engine.name", "deepspeed", "--techniques", "fp16"],
            "gradients.hook: needs engine.name=accelerate, whose DDP has it, got fp16 with engine.name=deepspeed",
        ),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["compare", "--config", str(ROOT / "configs" / "quickstart_gradient.yaml")]
    assert main([*command, "--output_dir", str(tmp_path / "out"), *arguments]) == 2
    said = capsys.readouterr().err
    assert message in " ".join(said.split())
    assert not (tmp_path / "out").exists()


def test_every_technique_is_what_its_name_says_whatever_the_configuration() -> None:
    found: dict[str, Any] = {}
    for original in [load_config(ROOT / "configs/compare/cnn.yaml"), *map(published, PUBLISHED)]:
        config = dataclasses.replace(original, engine=dataclasses.replace(original.engine, name="accelerate"))
        variants = {t: with_arguments(config, own) for t, own in find_techniques(",".join(DIFFERENCES), config).items()}
        exchanges = {t: (v.exchanged, v.gradients, v.engine.mixed_precision) for t, v in variants.items()}
        assert len(set(map(str, exchanges.values()))) == len(DIFFERENCES)
        assert found.setdefault("first", exchanges) == exchanges
        for technique, variant in variants.items():
            assert not keys_without_effect(variant)
            assert variant.exchanged.is_dense == ("topk" not in technique)
            momentum = 0.0 if technique == "topk_dgc" else config.clients.momentum
            assert variant.clients == dataclasses.replace(config.clients, momentum=momentum)
        assert variants["topk_dgc"].compression.dgc_momentum == config.clients.momentum
    assert set(USUAL) <= set(DIFFERENCES)


def test_keys_of_hooks_that_change_nothing_are_named() -> None:
    base = Config(mode="gradient", gradients=GradientsConfig("fp16", powersgd_rank=2))
    assert keys_without_effect(base) == {"gradients.hook=powersgd": ["gradients.powersgd_rank"]}
    federated = dataclasses.replace(base, mode="federated", gradients=GradientsConfig("fp16"))
    assert keys_without_effect(federated) == {"mode=gradient": ["gradients.hook"]}


def test_a_technique_that_diverges_is_named_and_so_is_what_percentages_refer_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["compare", "--config", str(ROOT / "configs" / "quickstart_gradient.yaml"), "--rounds", "2"]
    command += ["--output_dir", str(tmp_path / "out"), "--ranks", "1", "--techniques", "full_precision,topk"]
    command += ["--clients.momentum", "0", "--tune", "clients.lr=1e30"]
    assert main(command) == 1
    assert "compare: every technique diverged" in " ".join(capsys.readouterr().err.split())


def test_dgc_s_momentum_is_not_to_be_had_twice(caplog: pytest.LogCaptureFixture) -> None:
    used = config("x", compression=CompressionConfig(density=0.1, error_feedback="dgc"))
    check_run(used, [torch.arange(4)], net())
    assert "clients.momentum: dgc has its own momentum" in caplog.text
    caplog.clear()
    check_run(dataclasses.replace(used, gradients=GradientsConfig(hook="fp16")), [torch.arange(4)], net())
    assert "its own momentum" not in caplog.text


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_experiments_differ_in_precision_and_exchange_alone(name: str) -> None:
    own = published(name)
    base = published("baseline")
    alike = dataclasses.replace(own, compression=base.compression, engine=base.engine, output_dir=base.output_dir)
    assert alike == base
    assert own.engine == EngineConfig(name="deepspeed", mixed_precision="fp16" if "fp16" in name else "no")
    assert own.compression.is_dense == (name == "baseline")
