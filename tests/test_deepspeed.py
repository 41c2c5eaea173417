"""DeepSpeed engines: the hook inside one takes DDP's steps, one of a rank's own trains clients as Accelerate does."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import DeepSpeedPlugin
from torch import Tensor, nn
from torch.optim import Optimizer

import flare_dist
from flare_dist.algorithms.fedprox import FedProxConfig
from flare_dist.clients.client import LocalTrainer
from flare_dist.clients.config import ClientsConfig
from flare_dist.clients.optimizers import OPTIMIZERS
from flare_dist.comm.world import World
from flare_dist.config.config import load_config
from flare_dist.data.batches import BatchSource
from flare_dist.data.examples import Examples
from flare_dist.engines.build import build_model
from flare_dist.engines.config import EngineConfig
from flare_dist.engines.deepspeed_config import deepspeed_settings
from flare_dist.records.rundir import settle
from flare_dist.sparse_training.config import SparseTrainingConfig
from flare_dist.sparse_training.local_mask import LocalMask
from flare_dist.sparse_training.masks import random_mask
from flare_dist.sparse_training.schedule import falling_rates
from flare_dist.tasks.builtin import CLASSIFICATION
from tests import test_trainer
from tests.helpers.hook import STEPS, batch, flat, make_accelerator, net, steps_of, train
from tests.ranks import run_ranks

ROOT = Path(__file__).parent.parent
START_SECONDS = 300.0  # importing DeepSpeed takes seconds, and more on a busy machine


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
    """All that the tests want to know, in one start of the ranks: importing DeepSpeed takes seconds."""
    # At stage 1 it calls what torch 2.14 gave another name.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.all_gather_into_tensor` is deprecated", FutureWarning)
    results: dict[Any, tuple[Tensor, int]] = {
        case: trained(world, case[0], case[2], VARIANTS[case[1]]) for case in CASES
    }
    for stage in (0, 1):
        for takes_back in (False, True):
            results[stage, "thrown away", takes_back] = thrown_away(world, stage, takes_back)
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
    return results, said


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[dict[Any, tuple[Tensor, int]], list[str]]]:
    return run_ranks(everything, 2, str(tmp_path_factory.mktemp("accelerate")), seconds=START_SECONDS)


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


# Federated clients, one engine a rank.

ENGINES: dict[str, dict[str, Any]] = {
    "stage 0": {"stage": 0},
    "stage 1": {"stage": 1},
    "stage 2": {"stage": 2},
    "stage 2 offloaded": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
}
METHODS: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.9},
    "adamw": {"optimizer": "adamw", "lr": 0.01},
    "clipped": {"gradient_clipping": 0.5},
}
MASKED = "masked"  # sgd on a sparse model whose mask moves


def clients_of(
    world: World, method: str, zero: dict[str, Any] | None, precision: str = "no", pieces: int = 1
) -> list[tuple[float, Tensor, Tensor]]:
    """(loss, model delta, buffer delta) of clients 0, 1 and 0 again, by a DeepSpeed engine or (None) by Accelerate."""
    common: dict[str, Any] = {"batch_size": 10, "local_epochs": 2, "objective": "fedprox"}
    config = ClientsConfig(fedprox=FedProxConfig(0.1), **common, **METHODS.get(method, {"momentum": 0.9}))
    engine = EngineConfig(threads=1, mixed_precision=precision, gradient_accumulation_steps=pieces)
    if zero is not None:
        own = {"zero_optimization": zero, "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
        engine = replace(engine, name="deepspeed", deepspeed_config=own)
        engine = replace(engine, deepspeed_config=deepspeed_settings(engine, 10, config.gradient_clipping, "federated"))

    def make_optimizer(parameters: list[nn.Parameter]) -> Optimizer:
        return OPTIMIZERS[config.optimizer](parameters, config.lr, config.momentum, config.weight_decay)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
    rng = torch.Generator().manual_seed(world.rank)  # ranks have different clients
    examples = Examples(torch.randn(40, 1, 4, 4, generator=rng), torch.randint(3, (40,), generator=rng))
    local = build_model(engine, model, world, make_optimizer, config.gradient_clipping, alone=True, task=CLASSIFICATION)
    trainer = LocalTrainer(local, BatchSource(examples, torch.zeros(1), torch.ones(1), "cpu"), config, 1, 0)
    start, buffers = local.parameters.clone(), local.buffers.clone()
    results = []
    for client in (0, 1, 0):
        learner = _moving(local) if method == MASKED else None
        result = trainer.train(client, 1, torch.arange(40), start, buffers, {}, learner)
        if learner is not None:
            assert result.mask is not None
            assert not local.parameters[~result.mask].any()
            model_weights = torch.cat([p.detach().flatten().float() for p in local.module.parameters()])
            assert not model_weights[~result.mask].any()  # what the model computes with as well
        results.append((result.train_loss, result.model_delta.clone(), result.buffer_delta.clone()))
    return results


def _moving(local: Any) -> LocalMask:
    entries = [entry for entry in local.layout.entries if len(entry.shape) == 2]
    mask = random_mask(entries, [40, 10], local.layout.total, torch.Generator().manual_seed(1), torch.device("cpu"))
    draws, factor = torch.Generator().manual_seed(2), torch.empty(local.layout.total)
    config = SparseTrainingConfig(method="jmwst", growth="gradient")
    return LocalMask(config, entries, mask, 50, falling_rates(config.prune_rate, 8, 4), draws, factor)


def every_client(world: World) -> dict[Any, list[tuple[float, Tensor, Tensor]]]:
    """Clients of all engines, methods and precisions, in one start."""
    results: dict[Any, list[tuple[float, Tensor, Tensor]]] = {}
    for method in (*METHODS, MASKED):
        results[method, None, 1, "no"] = clients_of(world, method, None)
        for name, zero in ENGINES.items():
            for precision in ("no", "bf16"):
                results[method, name, 1, precision] = clients_of(world, method, zero, precision)
    results["sgd", None, 3, "no"] = clients_of(world, "sgd", None, pieces=3)
    results["sgd", "stage 2", 3, "no"] = clients_of(world, "sgd", ENGINES["stage 2"], pieces=3)
    return results


@pytest.fixture(scope="module")
def served() -> list[dict[Any, list[tuple[float, Tensor, Tensor]]]]:
    return run_ranks(every_client, 2, seconds=START_SECONDS)


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_serves_clients_as_accelerate_does(served: Any, engine: str, method: str, precision: str) -> None:
    for results in served:
        expected = results[method, None, 1, "no"]
        found = results[method, engine, 1, precision]
        assert found[0][0] == found[2][0]  # the same client again: nothing of the one between is left
        assert torch.equal(found[0][1], found[2][1])
        assert torch.equal(found[0][2], found[2][2])
        for (loss, delta, buffers), (expected_loss, expected_delta, expected_buffers) in zip(found, expected):
            exact = precision == "no"
            assert loss == pytest.approx(expected_loss, rel=1e-6 if exact else 0.01)
            assert (delta - expected_delta).norm() <= (1e-6 if exact else 0.15) * expected_delta.norm()
            assert torch.allclose(buffers, expected_buffers, rtol=0, atol=1e-6 if exact else 0.05)
            assert delta.dtype == torch.float32
            rounded = delta.bfloat16().float()
            assert not torch.equal(rounded, delta)  # from the float32 masters
    assert not torch.equal(served[0][method, engine, 1, precision][0][1], served[1][method, engine, 1, precision][0][1])


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_trains_sparse_models_as_accelerate_does(served: Any, engine: str) -> None:
    for results in served:
        for found, expected in zip(results[MASKED, engine, 1, "no"], results[MASKED, None, 1, "no"]):
            torch.testing.assert_close(found[1], expected[1], rtol=0, atol=1e-6)
        assert all(torch.equal(a, b) for a, b in zip(*(results[MASKED, engine, 1, "bf16"][n][1:] for n in (0, 2))))


def test_pieces_of_a_batch_are_one_step_of_the_engine(served: Any) -> None:
    for results in served:
        for found, expected in zip(results["sgd", "stage 2", 3, "no"], results["sgd", None, 3, "no"]):
            torch.testing.assert_close(found[1], expected[1], rtol=0, atol=1e-6)


def test_a_federated_run_is_accelerate_s_and_goes_on_with_another_number_of_ranks(tmp_path: Path) -> None:
    engine = EngineConfig(name="deepspeed", deepspeed_config=str(ROOT / "deepspeed_config.json"))
    test_trainer.start(test_trainer.tiny(tmp_path / "run", engine=engine), 2, kill_in_round=5)
    test_trainer.start(test_trainer.tiny(tmp_path / "run", engine=engine), 3)
    test_trainer.start(test_trainer.tiny(tmp_path / "accelerate"), 2)
    model, expected = test_trainer.results(tmp_path / "run")[0], test_trainer.results(tmp_path / "accelerate")[0]
    assert all(torch.allclose(model[name], expected[name], rtol=0, atol=1e-5) for name in expected)
    saved = load_config(tmp_path / "run" / "config.yaml").engine.deepspeed_config
    assert isinstance(saved, dict)  # what was in the file, which may change
    assert saved["zero_optimization"]["stage"] == 1
    other = replace(engine, deepspeed_config={**saved, "zero_optimization": {"stage": 2}})
    with pytest.raises(ValueError, match=r"^engine\.deepspeed_config\.zero_optimization\.stage: "):
        settle(test_trainer.tiny(tmp_path / "run", engine=replace(other, device="cpu", threads=1)), 1)
