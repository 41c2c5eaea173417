"""Placement and precision by Accelerate, on a CPU; what needs a GPU is marked."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from flare_dist.algorithms.fedprox import FedProxConfig
from flare_dist.clients.client import ClientResult, LocalTrainer
from flare_dist.clients.config import ClientsConfig
from flare_dist.data.batches import BatchSource
from flare_dist.data.examples import Examples
from flare_dist.engines.accelerate import AccelerateModel, place
from flare_dist.engines.config import EngineConfig, default_threads, settle_device
from flare_dist.tasks.builtin import CLASSIFICATION

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
    local_model = AccelerateModel(EngineConfig(**engine), net, device, sgd, CLASSIFICATION)
    return LocalTrainer(local_model, source, clients, 1, 0)


def sgd(parameters: list[nn.Parameter], momentum: float = 0.0) -> Optimizer:
    return SGD(parameters, lr=0.5, momentum=momentum)


def local(used: LocalTrainer, client: int = 0) -> ClientResult:
    return used.train(client, 1, torch.arange(40), used.model.parameters.clone(), used.model.buffers.clone(), {})


def test_bf16_computes_in_bf16_and_keeps_float32() -> None:
    net, types = model(), []
    net[1].register_forward_hook(lambda module, inputs, output: types.append(output.dtype))  # type: ignore[index]
    used = trainer(net, mixed_precision="bf16", threads=1)
    result = local(used)
    assert types == [torch.bfloat16] * 4
    (flat,) = used.model.optimizer.param_groups[0]["params"]
    gradients = [parameter.grad for parameter in net.parameters()]
    vectors = (used.model.parameters, flat, flat.grad, result.model_delta, *net.parameters(), *gradients)
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
    net = model()
    assert place(EngineConfig(threads=1), net, CPU)[1] is net
    AcceleratorState._reset_state(True)
    assert AccelerateModel(EngineConfig(threads=1), net, CPU, sgd, CLASSIFICATION).module is net


class Line(nn.Module):
    """Two scores, of which the second is w x: its cross-entropy and gradient are those of logistic regression."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.stack([torch.zeros(len(inputs)), self.weight * inputs], dim=1)


def test_backward_penalty_and_step_are_plain_on_a_cpu() -> None:
    net, seen = Line(), []
    used = AccelerateModel(EngineConfig(threads=1), net, CPU, sgd, CLASSIFICATION)
    used.load(torch.tensor([3.0]), torch.empty(0))
    inputs, labels = torch.tensor([1.0, 2.0]), torch.tensor([1, 0])

    def penalty(gradient: Tensor, parameters: Tensor) -> None:
        seen.append((gradient.item(), parameters.item()))
        gradient.add_(parameters)

    def slope(weight: float) -> float:
        return (1 / (1 + math.exp(-weight)) - 1 + 2 / (1 + math.exp(-2 * weight))) / 2

    loss, count = used.step(inputs, labels)
    assert count == len(labels)
    assert loss.item() == pytest.approx((math.log1p(math.exp(-3)) + math.log1p(math.exp(6))) / 2)
    after_one = 3 - 0.5 * slope(3)
    assert used.parameters.item() == net.weight.item() == pytest.approx(after_one)
    used.step(inputs, labels, penalty)
    # the gradient of this loss alone, the parameters before the step
    assert seen == [(pytest.approx(slope(after_one)), pytest.approx(after_one))]
    assert used.parameters.item() == pytest.approx(after_one - 0.5 * (slope(after_one) + after_one))


class Branches(nn.Module):
    """One layer that is used and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = model(), nn.Linear(3, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        scores: Tensor = self.used(inputs)
        return scores


def test_plain_steps_on_the_tensors_have_the_bits_of_steps_on_the_flat_vector() -> None:
    """A penalty that adds nothing asks for the flat gradient; of a layer that is not used that is zero."""
    ends, gradients = [], []
    for penalty in (None, lambda gradient, parameters: gradients.append(gradient.clone())):
        torch.manual_seed(0)
        used = AccelerateModel(EngineConfig(threads=1), Branches(), CPU, sgd, CLASSIFICATION)
        for step in range(5):
            inputs = torch.randn(10, 1, 4, 4, generator=torch.Generator().manual_seed(step))
            used.step(inputs, torch.arange(10) % 3, penalty)
        ends.append(used.parameters.clone())
        AcceleratorState._reset_state(True)
    assert torch.equal(*ends)
    assert all(gradient.count_nonzero() for gradient in gradients)
    assert not any(gradient[-12:].any() for gradient in gradients)


def test_pieces_of_a_batch_are_one_step_and_clipping_bounds_what_the_optimizer_gets() -> None:
    inputs, labels = torch.tensor([1.0, 2.0, -1.0, 0.5, 3.0]), torch.tensor([1, 0, 1, 1, 0])
    ends, penalties = {}, []
    for pieces in (1, 2, 3, 9):
        used = AccelerateModel(
            EngineConfig(threads=1, gradient_accumulation_steps=pieces), Line(), CPU, sgd, CLASSIFICATION
        )
        loss, _ = used.step(inputs, labels, lambda gradient, parameters: penalties.append(gradient.item()))
        ends[pieces] = loss.item(), used.parameters.item()
        AcceleratorState._reset_state(True)
    assert all(end == pytest.approx(ends[1]) for end in ends.values())
    assert len(penalties) == len(ends)

    def pull(gradient: Tensor, parameters: Tensor) -> None:
        gradient.add_(5.0)

    clipped = AccelerateModel(EngineConfig(threads=1), Line(), CPU, sgd, CLASSIFICATION, gradient_clipping=0.01)
    clipped.step(inputs, labels, pull)
    assert clipped.parameters.item() == pytest.approx(-0.5 * 0.01, rel=1e-3)


def test_the_flat_vectors_are_the_model() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    flat: list[nn.Parameter] = []

    def make_optimizer(parameters: list[nn.Parameter]) -> Optimizer:
        flat.extend(parameters)
        return sgd(parameters, momentum=0.5)

    used = AccelerateModel(EngineConfig(threads=1), net, CPU, make_optimizer, CLASSIFICATION)
    assert [parameters.data_ptr() for parameters in flat] == [used.parameters.data_ptr()]
    assert (used.layout.total, used.buffer_layout.total) == (len(used.parameters), len(used.buffers)) == (23, 6)
    for layout, vector, tensors in (
        (used.layout, used.parameters, dict(net.named_parameters())),
        (used.buffer_layout, used.buffers, dict(net.named_buffers())),
    ):
        vector.copy_(torch.arange(float(len(vector))))
        assert all(torch.equal(tensors[name], value) for name, value in layout.views(vector))


def test_loading_and_resetting_leave_nothing_of_the_client_before() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    used = AccelerateModel(
        EngineConfig(threads=1), net, CPU, lambda parameters: sgd(parameters, momentum=0.5), CLASSIFICATION
    )
    start = used.parameters.clone(), used.buffers.clone()
    counter = net[1].num_batches_tracked
    ends = []
    for _ in range(2):
        used.load(*start)
        used.reset()
        assert torch.equal(used.parameters, start[0])
        assert torch.equal(used.buffers, start[1])
        assert not used.optimizer.state
        assert counter == 0
        for _ in range(3):
            used.step(torch.eye(2), torch.tensor([0, 2]))
        assert used.optimizer.state
        assert counter == 3
        ends.append((used.parameters.clone(), used.buffers.clone()))
    assert all(map(torch.equal, *ends))
    assert not torch.equal(ends[0][0], start[0])


class Limited(nn.Module):
    """Bounds its weights' norm as models of EEG do, and replaces a buffer, in evaluation too."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = model()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, inputs: Tensor) -> Tensor:
        weight = self.layer.get_parameter("1.weight")
        weight.data = torch.renorm(weight.data, 2, 0, 0.2)
        self.calls = self.calls + 1
        scores: Tensor = self.layer(inputs)
        return scores


@pytest.mark.parametrize("clipping", [None, 1e9])
def test_parameters_and_buffers_that_a_forward_pass_replaces_are_trained_and_loaded(clipping: float | None) -> None:
    """Against plain PyTorch; `clipping` chooses steps on the flat vector."""
    plain, inputs, labels = Limited(), torch.randn(10, 1, 4, 4), torch.arange(10) % 3
    used = AccelerateModel(EngineConfig(threads=1), Limited(), CPU, sgd, CLASSIFICATION, clipping)
    start = used.parameters.clone(), used.buffers.clone()
    optimizer = sgd(list(plain.parameters()))
    for _ in range(3):
        used.step(inputs, labels)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(plain(inputs), labels).backward()
        optimizer.step()
    torch.testing.assert_close(used.parameters, torch.cat([p.detach().flatten() for p in plain.parameters()]))
    used.collect()
    assert used.buffers == 3
    used.module(inputs)
    used.load(*start)
    assert torch.equal(torch.cat([p.detach().flatten() for p in used.module.parameters()]), start[0])
    assert used.module.calls == 0


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_are_those_asked_for(threads: int) -> None:
    torch.set_num_threads(3 - threads)
    place(EngineConfig(threads=threads), model(), CPU)
    assert torch.get_num_threads() == threads


def test_ranks_of_a_machine_share_its_cores() -> None:
    assert default_threads(10**6) == 1
    for ranks in (1, 2, 3):
        assert 1 <= default_threads(ranks) <= max(1, default_threads(1) // ranks)


NO_GPU = r"engine\.device: cuda was asked for, but PyTorch sees no GPU"
NO_FP16 = r"engine\.mixed_precision: fp16 needs a GPU .*"


@pytest.mark.parametrize(
    ("has_gpu", "settings", "message"),
    [
        (False, {"device": "cuda"}, NO_GPU),
        (False, {"device": "cuda", "mixed_precision": "fp16"}, NO_GPU),
        (False, {"mixed_precision": "fp16"}, NO_FP16),
        (False, {"device": "cpu", "mixed_precision": "fp16"}, NO_FP16),
        (True, {"device": "cpu", "mixed_precision": "fp16"}, NO_FP16),
    ],
)
def test_what_this_machine_cannot_do_is_refused(
    has_gpu: bool, settings: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the device is settled, not before: a configuration of another machine can be read on this one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    config = EngineConfig(**settings)
    with pytest.raises(ValueError, match=f"^{message}$"):
        settle_device(config)


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
@pytest.mark.parametrize(
    ("device", "has_gpu", "settled"),
    [
        ("auto", True, "cuda"),
        ("auto", False, "cpu"),
        ("cpu", True, "cpu"),
        ("cpu", False, "cpu"),
        ("cuda", True, "cuda"),
    ],
)
def test_a_gpu_is_taken_where_there_is_one(
    device: str, has_gpu: bool, settled: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    config = EngineConfig(device=device, mixed_precision=precision)
    if (settled, precision) == ("cpu", "fp16"):
        with pytest.raises(ValueError, match=r"^engine\.mixed_precision: "):
            settle_device(config)
    else:
        assert settle_device(config) == settled


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_a_model_on_another_device_than_the_run_is_refused() -> None:
    with pytest.raises(AssertionError, match="Accelerate chose cpu, not cuda"):
        place(EngineConfig(), model(), torch.device("cuda"))


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("name", {"name": "lightning"}),
        ("mixed_precision", {"mixed_precision": "fp8"}),
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
    start = used.model.parameters.clone(), used.model.buffers.clone()
    local(used, 0)
    after = used.train(1, 1, torch.arange(40), *start, {}).model_delta
    assert after.any()
    assert torch.equal(after, alone)
