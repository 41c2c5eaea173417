"""Objectives: what clients minimise besides their loss, given as an explicit gradient on the flat vectors.

An objective is a function (config, context) -> Penalty | None. It prepares what stays fixed for the round; the penalty
then adds its gradient before each local step. No autograd graph is built over it and no second model is held.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from flare_dist.clients.flare import FlareConfig, flare_penalty
from flare_dist.clients.penalty import LocalContext, Penalty


@dataclass(frozen=True)
class FedProxConfig:
    """Settings of the fedprox objective.

    Args:
        mu: weight of the penalty (mu / 2) * ||local - global||^2; 0 is plain local training.
        decay: in round r the weight is mu / decay^r; 1 keeps it.
    """

    mu: float = 0.01
    decay: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.mu < 1e38:  # the range of float32
            raise ValueError(f"clients.fedprox.mu: must be finite and not negative, got {self.mu}")
        if not self.decay >= 1:
            raise ValueError(f"clients.fedprox.decay: must be at least 1, got {self.decay}")


@dataclass(frozen=True)
class FedDynConfig:
    """Settings of the feddyn objective.

    Args:
        alpha: weight of the penalty (alpha / 2) * ||local - global||^2, and how fast the clients' gradients at their
            optima, h_k, are followed.
    """

    alpha: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1e38:  # the range of float32
            raise ValueError(f"clients.feddyn.alpha: must be positive and finite, got {self.alpha}")


class ObjectiveConfig(Protocol):
    """What objectives read of the clients' configuration."""

    @property
    def fedprox(self) -> FedProxConfig: ...

    @property
    def feddyn(self) -> FedDynConfig: ...

    @property
    def flare(self) -> FlareConfig: ...


Objective = Callable[[ObjectiveConfig, LocalContext], "Penalty | None"]


def none(config: ObjectiveConfig, context: LocalContext) -> None:
    """The loss alone."""


def fedprox(config: ObjectiveConfig, context: LocalContext) -> Penalty | None:
    """FedProx (Li et al. 2020): the gradient of (mu / 2) * ||w - w_t||^2 is mu * (w - w_t)."""
    mu = config.fedprox.mu * config.fedprox.decay**-context.round
    if not mu:
        return None

    def add_gradient(gradient: Tensor, local: Tensor) -> None:
        gradient.add_(local - context.global_parameters, alpha=mu)

    return Penalty(add_gradient)


def feddyn(config: ObjectiveConfig, context: LocalContext) -> Penalty:
    """FedDyn (Acar et al. 2021): f(w) - <h_k, w> + (alpha / 2) * ||w - w_t||^2; adds alpha * (w - w_t) - h_k."""
    h, alpha = context.state["h"], config.feddyn.alpha

    def add_gradient(gradient: Tensor, local: Tensor) -> None:
        gradient.add_(local - context.global_parameters, alpha=alpha).sub_(h)

    return Penalty(add_gradient)


def feddyn_memory(config: ObjectiveConfig, state: dict[str, Tensor], model_delta: Tensor) -> None:
    """h_k <- h_k - alpha * Delta_k, with the whole delta and not what is sent of it."""
    state["h"].sub_(model_delta, alpha=config.feddyn.alpha)


def scaffold(config: ObjectiveConfig, context: LocalContext) -> Penalty:
    """SCAFFOLD (Karimireddy et al. 2020): y <- y - lr * (g - c_k + c); adds c - c_k."""
    correction = context.state["server_control"] - context.state["control"]

    def add_gradient(gradient: Tensor, local: Tensor) -> None:
        gradient.add_(correction)

    return Penalty(add_gradient)


def control_change(state: dict[str, Tensor], model_delta: Tensor, steps: int, lr: float) -> Tensor:
    """SCAFFOLD's c_k+ - c_k = (w_t - y) / (K * lr) - c, and c_k becomes c_k+."""
    change = torch.add(state["server_control"], model_delta, alpha=1 / (steps * lr)).neg_()
    state["control"].add_(change)
    return change


def flare(config: ObjectiveConfig, context: LocalContext) -> Penalty | None:
    """FLARE (Greidi & Cohen 2024): pull the local model towards where the residual points."""
    return flare_penalty(config.flare, context)


OBJECTIVES: dict[str, Objective] = {
    "none": none,
    "fedprox": fedprox,
    "feddyn": feddyn,
    "scaffold": scaffold,
    "flare": flare,
}
# The vectors that a client remembers for its objective.
MEMORIES: dict[str, tuple[str, ...]] = {"feddyn": ("h",), "scaffold": ("control",)}
