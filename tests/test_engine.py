"""Placement and precision by Accelerate, on a CPU; what needs a GPU is marked."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.optim import SGD

from flare_dist.clients.client import LocalResult, LocalTrainer
from flare_dist.clients.config import ClientsConfig
from flare_dist.clients.objectives import FedProxConfig
from flare_dist.data.batches import BatchSource
from flare_dist.data.examples import Examples
from flare_dist.engines.accelerate import AccelerateEngine
from flare_dist.engines.config import EngineConfig, default_threads

CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps its precision and device in a singleton of the process."""
    threads = torch.get_num_threads()
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)
    torch.set_num_threads(threads)


def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))


def trainer(net: nn.Module, device: torch.device = CPU, scale: float = 1.0, **engine: Any) -> LocalTrainer:
    rng = torch.Generator().manual_seed(0)
    inputs, labels = scale * torch.randn(40, 1, 4, 4, generator=rng), torch.randint(3, (40,), generator=rng)
    source = BatchSource(Examples(inputs, labels), torch.zeros(1), torch.ones(1), device)
    clients = ClientsConfig(batch_size=10, lr=0.05, objective="fedprox", fedprox=FedProxConfig(0.1))
    return LocalTrainer(AccelerateEngine(EngineConfig(**engine), device), net, source, clients, 1, 0)


def local(used: LocalTrainer, client: int = 0) -> LocalResult:
    return used.train(client, 1, torch.arange(40), used.parameters.clone(), used.buffers.clone(), {})


def test_bf16_computes_in_bf16_and_keeps_float32() -> None:
    net, types = model(), []
    net[1].register_forward_hook(lambda module, inputs, output: types.append(output.dtype))  # type: ignore[index]
    used = trainer(net, mixed_precision="bf16", threads=1)
    result = local(used)
    assert types == [torch.bfloat16] * 4
    vectors = (used.parameters, used.gradient, result.model_delta, *net.parameters())
    assert all(vector.dtype == torch.float32 for vector in vectors)
    assert net(torch.zeros(1, 1, 4, 4)).dtype == torch.float32
    rounded = result.model_delta.clone()
    AcceleratorState._reset_state(True)
    exact = local(trainer(model(), threads=1)).model_delta
    assert not torch.equal(rounded, exact)
    assert (rounded - exact).norm() < 0.05 * exact.norm()


def test_without_mixed_precision_everything_is_float32() -> None:
    net, types = model(), []
    net[1].register_forward_hook(lambda module, inputs, output: types.append(output.dtype))  # type: ignore[index]
    local(trainer(net, threads=1))
    assert types == [torch.float32] * 4


def test_placing_adds_no_wrapper() -> None:
    engine, net = AccelerateEngine(EngineConfig(threads=1), CPU), model()
    assert engine.place(net) is net


def test_backward_unscale_and_step_are_plain_on_a_cpu() -> None:
    engine = AccelerateEngine(EngineConfig(threads=1), CPU)
    weight = nn.Parameter(torch.tensor([3.0]))
    engine.prepare(SGD([weight], lr=0.5))
    engine.reset()
    engine.backward((2 * weight).sum())
    engine.unscale()
    assert isinstance(weight.grad, Tensor)
    assert weight.grad.tolist() == [2.0]
    engine.step()
    assert weight.tolist() == [2.0]


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_are_those_asked_for(threads: int) -> None:
    torch.set_num_threads(3 - threads)
    AccelerateEngine(EngineConfig(threads=threads), CPU)
    assert torch.get_num_threads() == threads


def test_ranks_of_a_machine_share_its_cores() -> None:
    assert default_threads(10**6) == 1
    for ranks in (1, 2, 3):
        assert 1 <= default_threads(ranks) <= max(1, default_threads(1) // ranks)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
@pytest.mark.parametrize("settings", [{"device": "cuda"}, {"mixed_precision": "fp16"}])
def test_what_needs_a_gpu_is_refused_without_one(settings: dict[str, str]) -> None:
    (key,) = settings
    with pytest.raises(ValueError, match=rf"^engine\.{key}: .*GPU"):
        EngineConfig(**settings)  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_an_engine_on_another_device_than_the_run_is_refused() -> None:
    with pytest.raises(RuntimeError, match="Accelerate chose cpu where cuda was expected"):
        AccelerateEngine(EngineConfig(), torch.device("cuda"))


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("name", {"name": "lightning"}),
        ("mixed_precision", {"mixed_precision": "fp8"}),
        ("mixed_precision", {"mixed_precision": "fp16", "device": "cpu"}),
        ("device", {"device": "tpu"}),
        ("threads", {"threads": 0}),
        ("timeout_seconds", {"timeout_seconds": 0.0}),
        ("timeout_seconds", {"timeout_seconds": math.nan}),
    ],
)
def test_errors_name_the_key(key: str, values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"^engine\.{key}: "):
        EngineConfig(**values)


@pytest.mark.gpu
@needs_gpu
def test_fp16_clients_do_not_inherit_a_loss_scale() -> None:
    """The first client's gradients overflow a few times, which the next one must not notice."""
    device = torch.device("cuda", 0)
    alone = local(trainer(model().to(device), device, 10.0, mixed_precision="fp16"), 1).model_delta.clone()
    AcceleratorState._reset_state(True)
    used = trainer(model().to(device), device, 10.0, mixed_precision="fp16")
    start = used.parameters.clone(), used.buffers.clone()
    local(used, 0)
    after = used.train(1, 1, torch.arange(40), *start, {}).model_delta
    assert after.any()
    assert torch.equal(after, alone)
