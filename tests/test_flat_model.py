"""Flat vectors are the model, whatever its forward pass replaces."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flare_dist.engines.accelerate import AccelerateModel
from flare_dist.engines.config import EngineConfig
from flare_dist.tasks.builtin import CLASSIFICATION
from tests.helpers.engines import CPU, sgd, small_net

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


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
            used.step((torch.eye(2), torch.tensor([0, 2])))
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
        self.layer = small_net()
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
        used.step((inputs, labels))
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


def of_bfloat16(pieces: int = 1) -> tuple[nn.Linear, AccelerateModel]:
    """A model whose second layer is of bfloat16, and that layer."""
    half = nn.Linear(3, 2)
    first = nn.Linear(2, 3)
    for part in (first, half):
        for parameter in part.parameters():
            parameter.data = torch.linspace(-1, 1, parameter.numel()).view(parameter.shape)
    half.to(torch.bfloat16).register_forward_pre_hook(lambda module, inputs: inputs[0].bfloat16())
    config = EngineConfig(threads=1, gradient_accumulation_steps=pieces)
    return half, AccelerateModel(config, nn.Sequential(first, half), CPU, sgd, CLASSIFICATION)


def test_weights_of_bfloat16_are_rounded_at_the_start_and_not_between_steps() -> None:
    half, used = of_bfloat16()
    exact = torch.linspace(-1, 1, used.layout.total) / 3
    used.load(exact, used.buffers.clone())
    start = used.parameters.clone()
    assert torch.equal(start[:9], exact[:9])
    assert torch.equal(start[9:], exact[9:].bfloat16().float())
    assert not torch.equal(start, exact)
    for _ in range(2):
        used.step((1e-3 * torch.eye(2), torch.tensor([0, 1])))
    end = used.parameters
    assert (end - start)[9:].any()
    assert not torch.equal(end[9:], end[9:].bfloat16().float())
    assert half.weight.dtype == torch.bfloat16
    assert torch.equal(half.weight.flatten(), end[9:15].bfloat16())


def test_gradients_of_bfloat16_add_up_over_pieces() -> None:
    batch = (torch.randn(6, 2, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 2)
    found: list[Tensor] = []
    for pieces in (1, 2, 3):
        of_bfloat16(pieces)[1].step(batch, lambda gradient, parameters: found.append(gradient.clone()))
    assert found[0].dtype == torch.float32
    assert found[0][9:].any()
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0.02, atol=0.02)


def test_masks_reach_weights_of_bfloat16() -> None:
    half, used = of_bfloat16()
    used.mask_(torch.zeros(used.layout.total))
    assert not half.weight.any()
