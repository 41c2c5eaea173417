"""Penalties against autograd; a zero coefficient is the simpler method."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flare_dist.algorithms import fedprox as method
from flare_dist.algorithms.algorithm import LocalContext, LocalWork, Penalty
from flare_dist.algorithms.fedprox import FedProxConfig
from flare_dist.algorithms.flare import FlareConfig
from flare_dist.algorithms.methods import OBJECTIVES, algorithm_of
from flare_dist.clients.config import ClientsConfig
from flare_dist.layout import ParameterLayout


def vectors() -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    first, second, third = torch.randn(3, 40, generator=rng, dtype=torch.float64)
    return first, second, third


def fedprox(global_parameters: Tensor, round_: int = 1, **settings: float) -> Penalty:
    layout = ParameterLayout.of([("a", global_parameters)])
    context = LocalContext(layout, round_, 0.1, 0.0, global_parameters, {}, {})
    penalty = method.fedprox(FedProxConfig(**settings)).penalty(context)
    assert penalty is not None
    return penalty


@pytest.mark.parametrize("mu", [0.01, 1.0, 7.5])
def test_fedprox_adds_the_gradient_of_its_penalty(mu: float) -> None:
    gradient, local, global_parameters = vectors()
    penalty = fedprox(global_parameters, mu=mu)
    moving = local.clone().requires_grad_()
    (mu / 2 * (moving - global_parameters).square().sum()).backward()
    assert moving.grad is not None
    expected, untouched = gradient + moving.grad, (local.clone(), global_parameters.clone())
    penalty.add_gradient(gradient, local)
    torch.testing.assert_close(gradient, expected, rtol=1e-14, atol=1e-14)
    assert all(map(torch.equal, (local, global_parameters), untouched))


def test_fedprox_pulls_towards_the_global_model() -> None:
    _, local, global_parameters = vectors()
    penalty = fedprox(global_parameters, mu=1.0)
    still = torch.zeros(40, dtype=torch.float64)
    penalty.add_gradient(still, global_parameters.clone())
    assert not still.any()
    for _ in range(60):
        gradient = torch.zeros_like(local)
        penalty.add_gradient(gradient, local)
        local -= 0.5 * gradient
    torch.testing.assert_close(local, global_parameters)


def test_fedprox_may_decay_over_the_rounds() -> None:
    gradient, local, global_parameters = vectors()
    expected = gradient + 8.0 / 2.0**3 * (local - global_parameters)
    fedprox(global_parameters, 3, mu=8.0, decay=2.0).add_gradient(gradient, local)
    torch.testing.assert_close(gradient, expected, rtol=1e-14, atol=1e-14)


def test_the_steps_shrink_by_the_strength_of_their_round() -> None:
    """FedNova counts gradients by it, so that it must decay as the penalty does."""
    record = algorithm_of(ClientsConfig(objective="fedprox", fedprox=FedProxConfig(mu=8.0, decay=2.0)))
    assert record.brief(LocalWork(3, 5, 0.1, 0.0)).shrinking == pytest.approx(1 - 0.1 * 8.0 / 2.0**3)


# methods with memory have no such coefficient
@pytest.mark.parametrize("name", [name for name, make in OBJECTIVES.items() if not make(ClientsConfig()).memory])
def test_zero_coefficients_add_nothing(name: str) -> None:
    config = ClientsConfig(objective=name, fedprox=FedProxConfig(0.0), flare=FlareConfig(tau=0.0))
    layout = ParameterLayout.of([("a", torch.empty(3))])
    context = LocalContext(layout, 1, 0.1, 0.0, torch.zeros(3), {"residual": torch.ones(3)}, {})
    assert OBJECTIVES[name](config).penalty(context) is None


@pytest.mark.parametrize("mu", [-0.1, float("nan"), float("inf")])
def test_errors_name_the_key(mu: float) -> None:
    with pytest.raises(ValueError, match=r"^clients\.fedprox\.mu: out of range, got "):
        FedProxConfig(mu)


def test_a_growing_penalty_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^clients\.fedprox\.decay: out of range, got 0.9; choose at least 1"):
        FedProxConfig(decay=0.9)
