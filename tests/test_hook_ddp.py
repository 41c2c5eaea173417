"""The hook against plain DDP and against the algorithm in one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from flare_dist.compression.compressor import density_in
from flare_dist.compression.config import CompressionConfig
from tests.helpers.hook import STEPS, batch, flat, net, train
from tests.ranks import run_ranks


def oracle(size: int, config: CompressionConfig, accumulate: int = 1) -> tuple[Tensor, list[list[Tensor]]]:
    """The same in one process and plain PyTorch: (parameters, residuals by rank)."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    residuals = [[torch.zeros_like(p) for p in model.parameters()] for _ in range(size)]
    velocities = [[torch.zeros_like(p) for p in model.parameters()] for _ in range(size)]
    for step in range(STEPS):
        means = [torch.zeros_like(p) for p in model.parameters()]
        for rank in range(size):
            optimizer.zero_grad()
            for part in range(accumulate):
                inputs, labels = batch(rank, accumulate * step + part)
                F.cross_entropy(model(inputs), labels).backward()
            for p, mean, residual, velocity in zip(model.parameters(), means, residuals[rank], velocities[rank]):
                assert p.grad is not None
                brought = velocity.mul_(config.dgc_momentum).add_(p.grad) if config.rule == "dgc" else p.grad
                update = (residual + brought).flatten()
                k = -(-update.numel() * int(1000 * density_in(config, step + 1)) // 1000)
                kept = update.abs().sort(descending=True, stable=True).indices[:k]
                sent = torch.zeros_like(update).index_copy(0, kept, update[kept]).view_as(p)
                residual.copy_(update.view_as(p) - sent)
                velocity[sent != 0] = 0
                mean.add_(sent / size)
        for p, mean in zip(model.parameters(), means):
            p.grad = mean
        optimizer.step()
    return flat(model), residuals


@pytest.mark.parametrize("size", [2, 3, 4])
def test_density_one_is_plain_ddp(size: int) -> None:
    plain = run_ranks(train, size)
    for (hooked, _), (expected, _) in zip(run_ranks(train, size, {"density": 1.0}), plain):
        if size == 2:
            assert torch.equal(hooked, expected)
        torch.testing.assert_close(hooked, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("density", [0.01, 0.05])
def test_sparse_steps_equal_the_oracle(size: int, density: float) -> None:
    torch.set_num_threads(1)
    settings = {"density": density}
    expected, residuals = oracle(size, CompressionConfig(density=density))
    for rank, (hooked, state) in enumerate(run_ranks(train, size, settings)):
        torch.testing.assert_close(hooked, expected, rtol=0, atol=1e-6)
        assert state["step"] == STEPS
        for own, residual in zip(state["memory"].values(), residuals[rank]):
            torch.testing.assert_close(own["residual"], residual.flatten().view_as(own["residual"]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"density": 0.05, "error_feedback": "dgc", "momentum": 0.5},
        {"density": 0.05, "warmup": (0.5, 0.25), "warmup_rounds": 4},
    ],
    ids=["dgc", "warm-up"],
)
def test_momentum_correction_and_warm_up_equal_the_oracle(settings: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    expected, _ = oracle(2, CompressionConfig(**settings))
    for hooked, _ in run_ranks(train, 2, settings):
        torch.testing.assert_close(hooked, expected, rtol=0, atol=1e-6)


def test_accumulated_gradients_are_sent_once() -> None:
    torch.set_num_threads(1)
    expected, _ = oracle(2, CompressionConfig(density=0.05), accumulate=3)
    for hooked, state in run_ranks(train, 2, {"density": 0.05}, None, STEPS, 3):
        torch.testing.assert_close(hooked, expected, rtol=0, atol=1e-6)
        assert state["step"] == STEPS
