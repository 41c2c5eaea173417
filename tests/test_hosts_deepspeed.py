"""Clients on hosts of several ranks under DeepSpeed's ZeRO are clients on one rank, to rounding."""

from __future__ import annotations

import dataclasses
import gc
import re
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from flare_dist.algorithms.flare import FlareConfig
from flare_dist.clients.evaluation import evaluate
from flare_dist.comm.world import World
from flare_dist.compression.config import CompressionConfig
from flare_dist.config.config import CheckpointConfig, Config
from flare_dist.engines.build import build_model
from flare_dist.engines.config import EngineConfig
from flare_dist.engines.deepspeed_config import deepspeed_settings
from flare_dist.engines.gathered import whole
from flare_dist.rounds.alike import check_alike
from flare_dist.rounds.build_run import set_up_federation
from flare_dist.rounds.federated import federated_round
from flare_dist.server.aggregation import cohort_weights
from flare_dist.server.config import ServerConfig
from flare_dist.tasks.builtin import CLASSIFICATION
from tests.helpers.batches import resident
from tests.helpers.engines import DEEPSPEED_SECONDS, sgd
from tests.helpers.hosts import play_on, resolved, with_clients, zero
from tests.helpers.rounds import DATA, DENSE
from tests.helpers.runs import assert_same_run, start, start_rank, tiny
from tests.ranks import run_ranks, single

STAGES = (1, 2, 3)
LAYOUTS = (1, 3)  # stages 1 and 2 have the same slices
FEW = dataclasses.replace(DATA, synthetic=dataclasses.replace(DATA.synthetic, examples=80))
ALL = dataclasses.replace(DENSE, data=FEW, rounds=2)
# What a threshold selects does not depend on which rank holds it.
ABOVE = dataclasses.replace(ALL, compression=CompressionConfig(sparsifier="threshold", threshold=0.01, density=1.0))
CONFIGS = {
    "dense": ALL,
    "flare": with_clients(
        ABOVE, objective="flare", flare=FlareConfig(tau=0.05, percentile=70.0), gradient_clipping=0.5
    ),
    "scaffold": dataclasses.replace(
        with_clients(ALL, objective="scaffold", momentum=0.0), server=ServerConfig(momentum=0.5)
    ),
}


class Odd(nn.Module):
    """A frozen layer, a parameter that is not always used, sizes that no number of ranks divides, and a statistic."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 7)
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(()))
        self.frozen = nn.Linear(7, 7).requires_grad_(False)
        self.sometimes = nn.Parameter(torch.full((3,), 0.1))
        self.last = nn.Linear(7, 3)
        self.uses = True
        self.breaks = False

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.mean.mul_(0.5).add_(inputs.detach().mean() / 2)
        outputs: Tensor = self.last(torch.tanh(self.frozen(self.first(inputs))))
        if self.uses:
            outputs = outputs + self.sometimes
        return outputs + (outputs * 0).sqrt() if self.breaks else outputs  # the gradient of which is NaN


def steps_of(world: World, engine: EngineConfig) -> dict[str, Any]:
    """What two steps make of the odd model, the second of which does not use a parameter; then one that breaks."""
    config = resolved(with_clients(Config(engine=engine), batch_size=4))
    torch.manual_seed(0)
    module = Odd()
    frozen = module.frozen.weight.detach().clone()
    batches = [(torch.randn(4, 5), torch.randint(3, (4,))) for _ in range(2)]
    local = build_model(config.engine, module, world, lambda p: sgd(p, 0.9), None, alone=True, task=CLASSIFICATION)
    began = local.parameters.clone()
    kept_frozen = torch.equal(whole(module.frozen.weight), frozen)
    for client in range(2):  # the second begins as the first did
        local.load(began, torch.zeros_like(local.buffers))
        local.reset()
        for module.uses, batch in zip((True, False), batches):
            local.step(batch)
        if client == 0:
            state = [weakref.ref(v) for own in local.optimizer.state.values() for v in own.values()]
    local.collect()
    model = {name: whole(value).clone() for name, value in module.state_dict(keep_vars=True).items()}
    mean = float(local.buffers)
    gc.collect()
    module.breaks = True
    loss, _ = local.step(batches[0])
    local.collect()
    return {
        "model": model,
        "mean": mean,
        "kept frozen": kept_frozen,
        "in memory": sum(reference() is not None for reference in state),
        "broken loss": float(loss.detach()),
        "broken": bool(local.parameters.isnan().all()),
    }


def conserved(world: World, engine: EngineConfig) -> float:
    """How far the model has moved with what is still to be sent, beyond what the clients have learnt; largest entry.

    Raises ValueError if hosts end with other bits for the same slices.
    """
    compression = CompressionConfig(density=0.02)
    config = with_clients(dataclasses.replace(ALL, engine=engine, compression=compression), per_round=5)
    fed = set_up_federation(resolved(config), world)
    began = fed.view.clone()
    learnt = torch.zeros_like(began)
    sizes = fed.clients.partition.sizes
    weights = cohort_weights(list(range(5)), sizes, config.clients.weighting)
    train = fed.clients.trainer.train

    def noted(client: int, *arguments: Any, **settings: Any) -> Any:
        result = train(client, *arguments, **settings)
        learnt.add_(result.model_delta, alpha=float(weights[client]))
        return result

    fed.clients.trainer.train = noted  # type: ignore[method-assign]
    for round_ in (1, 2):
        federated_round(round_, fed)
        check_alike(round_, world, fed.held_alike())
    for client, memory in fed.clients.states.clients.items():
        learnt.sub_(memory["residual"], alpha=float(weights[client]))
    return float((fed.view - began - world.all_reduce_(learnt)).abs().max())


def left_out(world: World, engine: EngineConfig) -> list[Any]:
    """The clients that are left out if one has an example that is not finite, which one rank of its host computes.

    One host evaluates before, and the other one does not.
    """
    fed = set_up_federation(resolved(with_clients(dataclasses.replace(ALL, engine=engine), per_round=5)), world)
    inputs = resident(fed.clients.trainer.source).inputs.float()
    inputs[fed.clients.partition[2][0]] = float("nan")
    resident(fed.clients.trainer.source).inputs = inputs
    if world.host_number == 1:
        evaluate(fed.model.module, fed.source, fed.task)
    row = federated_round(1, fed)
    return [row["rejected_clients"], bool(fed.view.isfinite().all())]


def every_stage(world: World) -> dict[Any, Any]:
    """All that is asked of hosts of two ranks, in one start."""
    found: dict[Any, Any] = {("steps", "alone"): steps_of(world, zero(1, 1))}
    for stage in STAGES:
        engine = zero(stage, world.host.shards)
        found[stage] = play_on(world, CONFIGS, engine)
        found["steps", stage] = steps_of(world, engine)
        if stage not in LAYOUTS:
            continue
        found["conserved", stage] = conserved(world, engine)
        found["left out", stage] = left_out(world, engine)
        found["bf16", stage] = play_on(world, {"dense": ALL}, dataclasses.replace(engine, mixed_precision="bf16"))
    return found


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    """What one rank computes by itself."""
    found: dict[str, Any] = single(play_on, CONFIGS, EngineConfig())
    return found | {"steps": single(steps_of, EngineConfig())}


@pytest.fixture(scope="module")
def hosts() -> list[dict[Any, Any]]:
    """What two hosts of two ranks compute."""
    return run_ranks(every_stage, 4, shards=2, seconds=DEEPSPEED_SECONDS)


@pytest.mark.parametrize("stage", STAGES)
def test_hosts_of_two_shards_are_those_of_one_to_rounding(one: Any, hosts: Any, stage: int) -> None:
    for found in hosts:
        for name, (model, rows) in found[stage].items():
            expected, expected_rows = one[name]
            for key, weight in model.items():
                torch.testing.assert_close(weight, expected[key], rtol=0, atol=2e-6, msg=f"{name}: {key}")
            for figure in ("kept", "total"):
                assert [row[figure] for row in rows] == [row[figure] for row in expected_rows]
            losses = [row["train_loss"] for row in rows]
            assert losses == pytest.approx([row["train_loss"] for row in expected_rows], abs=1e-6)


@pytest.mark.parametrize("stage", LAYOUTS)
def test_in_bf16_they_are_so_roughly(one: Any, hosts: Any, stage: int) -> None:
    losses = [row["train_loss"] for row in hosts[0]["bf16", stage]["dense"][1]]
    assert losses == pytest.approx([row["train_loss"] for row in one["dense"][1]], rel=0.02)
    assert losses != [row["train_loss"] for row in one["dense"][1]]


@pytest.mark.parametrize("stage", LAYOUTS)
def test_hosts_agree_and_nothing_is_lost_if_each_rank_selects(hosts: Any, stage: int) -> None:
    assert all(found["conserved", stage] < 1e-6 for found in hosts)


@pytest.mark.parametrize("stage", LAYOUTS)
def test_a_client_that_diverges_on_one_rank_is_left_out_by_all(hosts: Any, stage: int) -> None:
    for found in hosts:
        assert found["left out", stage] == [1, True]


@pytest.mark.parametrize("stage", [*STAGES, "alone"])
def test_steps_are_those_of_one_rank(one: Any, hosts: Any, stage: int | str) -> None:
    for found in hosts:
        steps, expected = found["steps", stage], one["steps"]
        for key, weight in steps["model"].items():
            if key != "mean":  # which each rank has of its part, until it is collected
                torch.testing.assert_close(weight, expected["model"][key], rtol=0, atol=2e-6, msg=key)
        assert steps["mean"] == pytest.approx(expected["mean"], abs=1e-6)
        assert steps["kept frozen"]
        assert steps["in memory"] == 0
        assert steps["broken"]
        assert steps["broken loss"] == pytest.approx(expected["broken loss"], abs=1e-6)  # which is finite


def run(directory: Path, engine: EngineConfig, source: Path | None = None) -> Config:
    """The tiny run, or what another one has left for it to go on from."""
    compression = dataclasses.replace(ABOVE.compression, threshold=0.002, downlink="changed")
    checkpoint = CheckpointConfig(every=2, resume="auto" if source is None else str(source))
    return tiny(directory, compression=compression, engine=engine, checkpoint=checkpoint)


def runs_of_two(world: World, directory: Path) -> None:
    """On a host of two ranks a run, one that is killed and goes on, and others that go on from those on other hosts."""
    host = zero(3, 2)
    start_rank(world, run(directory / "straight", host))
    start_rank(world, run(directory / "killed", host), kill_in_round=5)
    if world.rank == 0:
        shutil.copytree(directory / "killed", directory / "source")
    world.meet()
    start_rank(world, run(directory / "killed", host))
    start_rank(world, run(directory / "fsdp", EngineConfig(name="fsdp", shards=2), directory / "source"))
    start_rank(world, run(directory / "zero 1", zero(1, 2), directory / "alone"))


def test_a_killed_run_goes_on_bitwise_and_on_other_hosts_to_rounding(tmp_path: Path) -> None:
    start(run(tmp_path / "alone", EngineConfig()), kill_in_round=5)
    run_ranks(runs_of_two, 2, tmp_path, shards=2, seconds=DEEPSPEED_SECONDS)
    start(run(tmp_path / "accelerate", EngineConfig(), tmp_path / "source"))
    assert_same_run(tmp_path / "straight", tmp_path / "killed")
    expected = load_file(tmp_path / "straight" / "model.safetensors")
    for name in ("fsdp", "zero 1", "accelerate"):
        model = load_file(tmp_path / name / "model.safetensors")
        for key, weight in model.items():
            torch.testing.assert_close(weight, expected[key], rtol=0, atol=2e-6, msg=f"{name}: {key}")


@pytest.mark.parametrize(
    ("engine", "changes", "message"),
    [
        (
            {},
            {"compression": CompressionConfig(density=0.1, scope="row")},
            "compression.scope: ZeRO cuts rows in pieces, got row with engine.name=deepspeed and engine.shards=2; use "
            "engine.name=fsdp, or tensor, block or global",
        ),
        ({}, {"mode": "centralised"}, "engine.name: only federated clients have hosts"),
        ({"mixed_precision": "fp16"}, {}, "engine.shards: a loss scale would be of one rank alone, got 2 with"),
        ({"gradient_accumulation_steps": 2}, {}, "engine.shards: the ranks of a host divide each batch already"),
    ],
)
def test_what_does_not_go_with_zero_is_refused(engine: dict[str, Any], changes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        tiny(Path("unused"), engine=EngineConfig(name="deepspeed", shards=2, **engine), **changes)


@pytest.mark.parametrize(
    ("sections", "shards", "message"),
    [
        ({"stage": 0}, 2, "engine.deepspeed_config: zero_optimization.stage must divide the model among the ranks"),
        ({"stage": 3}, 1, "engine.deepspeed_config: this zero_optimization.stage shards the weights, or leaves no"),
        (
            {"stage": 2, "offload_optimizer": {"device": "cpu"}},
            2,
            "engine.deepspeed_config: zero_optimization.offload_optimizer is untested with engine.shards above 1, got "
            "{'device': 'cpu'}; leave it out",
        ),
        ({"stage": 3, "zero_hpz_partition_size": 2}, 2, "engine.deepspeed_config: zero_optimization.zero_hpz_"),
    ],
)
def test_settings_of_zero_that_hosts_cannot_have_are_refused(sections: Any, shards: int, message: str) -> None:
    engine = EngineConfig(name="deepspeed", shards=shards, deepspeed_config={"zero_optimization": sections})
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        deepspeed_settings(engine, 8, None, "federated")


def test_settings_that_put_nothing_elsewhere_are_taken() -> None:
    off = {
        "stage": 3,
        "offload_param": {"device": "none"},
        "zero_hpz_partition_size": 1,
        "zero_quantized_weights": False,
    }
    engine = EngineConfig(name="deepspeed", shards=2, deepspeed_config={"zero_optimization": off})
    assert deepspeed_settings(engine, 8, None, "federated")["train_micro_batch_size_per_gpu"] == 4
