"""A DeepSpeed engine of a rank's own trains clients as Accelerate does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flare_dist.algorithms.fedprox import FedProxConfig
from flare_dist.clients.client import LocalTrainer
from flare_dist.clients.config import ClientsConfig
from flare_dist.clients.optimizers import OPTIMIZERS
from flare_dist.comm.host import Host
from flare_dist.comm.world import World
from flare_dist.config.load import load_config
from flare_dist.data.batches import BatchSource
from flare_dist.data.examples import Examples
from flare_dist.engines.build import build_model
from flare_dist.engines.config import EngineConfig
from flare_dist.engines.deepspeed_config import deepspeed_settings
from flare_dist.records.resume import resolve
from flare_dist.sparse_training.config import SparseTrainingConfig
from flare_dist.sparse_training.layers import Layers
from flare_dist.sparse_training.local_mask import LocalMask
from flare_dist.sparse_training.masks import random_mask
from flare_dist.sparse_training.schedule import falling_rates
from flare_dist.tasks.builtin import CLASSIFICATION
from tests.helpers import runs
from tests.helpers.engines import DEEPSPEED_SECONDS
from tests.ranks import run_ranks

ROOT = Path(__file__).parent.parent
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
        mask = _moving(local) if method == MASKED else None
        result = trainer.train(client, 1, torch.arange(40), start, buffers, {}, mask)
        if mask is not None:
            assert result.mask is not None
            assert not local.parameters[~result.mask].any()
            model_weights = torch.cat([p.detach().flatten().float() for p in local.module.parameters()])
            assert not model_weights[~result.mask].any()  # what the model computes with as well
        results.append((result.train_loss, result.model_delta.clone(), result.buffer_delta.clone()))
    return results


def _moving(local: Any) -> LocalMask:
    layers = Layers.of((entry for entry in local.layout.entries if len(entry.shape) == 2), Host())
    mask = random_mask(layers, [40, 10], local.layout.total, torch.Generator().manual_seed(1), torch.device("cpu"))
    draws, factor = torch.Generator().manual_seed(2), torch.empty(local.layout.total)
    config = SparseTrainingConfig(method="jmwst", growth="gradient")
    return LocalMask(config, layers, mask, 50, falling_rates(config.prune_rate, 8, 4), draws, factor)


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
    return run_ranks(every_client, 2, seconds=DEEPSPEED_SECONDS)


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
    runs.start(runs.tiny(tmp_path / "run", engine=engine), 2, kill_in_round=5)
    runs.start(runs.tiny(tmp_path / "run", engine=engine), 3)
    runs.start(runs.tiny(tmp_path / "accelerate"), 2)
    model, expected = runs.results(tmp_path / "run")[0], runs.results(tmp_path / "accelerate")[0]
    assert all(torch.allclose(model[name], expected[name], rtol=0, atol=1e-5) for name in expected)
    saved = load_config(tmp_path / "run" / "config.yaml").engine.deepspeed_config
    assert isinstance(saved, dict)  # what was in the file, which may change
    assert saved["zero_optimization"]["stage"] == 1
    other = replace(engine, deepspeed_config={**saved, "zero_optimization": {"stage": 2}})
    with pytest.raises(ValueError, match=r"^engine\.deepspeed_config\.zero_optimization\.stage: "):
        resolve(runs.tiny(tmp_path / "run", engine=replace(other, device="cpu", threads=1)), 1)
