"""Penalties against autograd; a zero coefficient is the simpler method."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flare_dist.clients.config import ClientsConfig
from flare_dist.clients.objectives import OBJECTIVES, FedProxConfig


def vectors() -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    first, second, third = torch.randn(3, 40, generator=rng, dtype=torch.float64)
    return first, second, third


@pytest.mark.parametrize("mu", [0.01, 1.0, 7.5])
@pytest.mark.parametrize("step", [0, 3])
def test_fedprox_adds_the_gradient_of_its_penalty(mu: float, step: int) -> None:
    gradient, local, global_parameters = vectors()
    penalty = OBJECTIVES["fedprox"](ClientsConfig(fedprox=FedProxConfig(mu)), global_parameters, {}, 1)
    assert penalty is not None
    moving = local.clone().requires_grad_()
    (mu / 2 * (moving - global_parameters).square().sum()).backward()
    assert moving.grad is not None
    expected, untouched = gradient + moving.grad, (local.clone(), global_parameters.clone())
    penalty(step, gradient, local)
    torch.testing.assert_close(gradient, expected, rtol=1e-14, atol=1e-14)
    assert all(map(torch.equal, (local, global_parameters), untouched))


def test_fedprox_pulls_towards_the_global_model() -> None:
    _, local, global_parameters = vectors()
    penalty = OBJECTIVES["fedprox"](ClientsConfig(fedprox=FedProxConfig(1.0)), global_parameters, {}, 1)
    assert penalty is not None
    still = torch.zeros(40, dtype=torch.float64)
    penalty(0, still, global_parameters.clone())
    assert not still.any()
    for _ in range(60):
        gradient = torch.zeros_like(local)
        penalty(0, gradient, local)
        local -= 0.5 * gradient
    torch.testing.assert_close(local, global_parameters)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_zero_coefficients_add_nothing(name: str) -> None:
    config = ClientsConfig(objective=name, fedprox=FedProxConfig(0.0))
    assert OBJECTIVES[name](config, torch.zeros(3), {}, 1) is None


@pytest.mark.parametrize("mu", [-0.1, float("nan")])
def test_errors_name_the_key(mu: float) -> None:
    with pytest.raises(ValueError, match=r"^clients\.fedprox\.mu: must not be negative, got "):
        FedProxConfig(mu)
