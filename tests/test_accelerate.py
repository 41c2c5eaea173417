"""Steps are those of plain PyTorch, in every precision; what needs a GPU is marked."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from flare_dist.algorithms.fedprox import FedProxConfig
from flare_dist.clients.client import ClientResult, LocalTrainer
from flare_dist.clients.config import ClientsConfig
from flare_dist.data.batches import BatchSource
from flare_dist.data.examples import Examples
from flare_dist.engines.accelerate import AccelerateModel
from flare_dist.engines.config import EngineConfig
from flare_dist.tasks.builtin import CLASSIFICATION
from tests.helpers.engines import CPU, sgd, small_net

pytestmark = pytest.mark.usefixtures("fresh_accelerate")

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def trainer(net: nn.Module, device: torch.device = CPU, scale: float = 1.0, **engine: Any) -> LocalTrainer:
    rng = torch.Generator().manual_seed(0)
    inputs, labels = scale * torch.randn(40, 1, 4, 4, generator=rng), torch.randint(3, (40,), generator=rng)
    source = BatchSource(Examples(inputs, labels), torch.zeros(1), torch.ones(1), device)
    clients = ClientsConfig(batch_size=10, lr=0.05, objective="fedprox", fedprox=FedProxConfig(0.1))
    local_model = AccelerateModel(EngineConfig(**engine), net, device, sgd, CLASSIFICATION)
    return LocalTrainer(local_model, source, clients, 1, 0)


def local(used: LocalTrainer, client: int = 0) -> ClientResult:
    return used.train(client, 1, torch.arange(40), used.model.parameters.clone(), used.model.buffers.clone(), {})


def test_bf16_computes_in_bf16_and_keeps_float32() -> None:
    net, types = small_net(), []
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
    exact = local(trainer(small_net(), threads=1)).model_delta
    assert not torch.equal(rounded, exact)
    assert (rounded - exact).norm() < 0.05 * exact.norm()


def test_without_mixed_precision_everything_is_float32() -> None:
    net, types = small_net(), []
    net[1].register_forward_hook(lambda module, inputs, output: types.append(output.dtype))  # type: ignore[index]
    local(trainer(net, threads=1))
    assert types == [torch.float32] * 4


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

    loss, count = used.step((inputs, labels))
    assert count == len(labels)
    assert loss.item() == pytest.approx((math.log1p(math.exp(-3)) + math.log1p(math.exp(6))) / 2)
    after_one = 3 - 0.5 * slope(3)
    assert used.parameters.item() == net.weight.item() == pytest.approx(after_one)
    used.step((inputs, labels), penalty)
    # the gradient of this loss alone, the parameters before the step
    assert seen == [(pytest.approx(slope(after_one)), pytest.approx(after_one))]
    assert used.parameters.item() == pytest.approx(after_one - 0.5 * (slope(after_one) + after_one))


class Branches(nn.Module):
    """One layer that is used and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = small_net(), nn.Linear(3, 3)

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
            used.step((inputs, torch.arange(10) % 3), penalty)
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
        loss, _ = used.step((inputs, labels), lambda gradient, parameters: penalties.append(gradient.item()))
        ends[pieces] = loss.item(), used.parameters.item()
        AcceleratorState._reset_state(True)
    assert all(end == pytest.approx(ends[1]) for end in ends.values())
    assert len(penalties) == len(ends)

    def pull(gradient: Tensor, parameters: Tensor) -> None:
        gradient.add_(5.0)

    clipped = AccelerateModel(EngineConfig(threads=1), Line(), CPU, sgd, CLASSIFICATION, gradient_clipping=0.01)
    clipped.step((inputs, labels), pull)
    assert clipped.parameters.item() == pytest.approx(-0.5 * 0.01, rel=1e-3)


@pytest.mark.gpu
@needs_gpu
def test_fp16_clients_do_not_inherit_a_loss_scale() -> None:
    """The first client's gradients overflow a few times, which the next one must not notice."""
    device = torch.device("cuda", 0)
    alone = local(trainer(small_net().to(device), device, 10.0, mixed_precision="fp16"), 1).model_delta.clone()
    AcceleratorState._reset_state(True)
    used = trainer(small_net().to(device), device, 10.0, mixed_precision="fp16")
    start = used.model.parameters.clone(), used.model.buffers.clone()
    local(used, 0)
    after = used.train(1, 1, torch.arange(40), *start, {}).model_delta
    assert after.any()
    assert torch.equal(after, alone)
