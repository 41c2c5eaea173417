"""Objectives: what clients minimise besides their loss, given as an explicit gradient on the flat vectors.

An objective is a function (config, global_parameters, state, round) -> penalty: it prepares what stays fixed for the
round. The penalty is a function (step, gradient, local) that adds its gradient at `local` to `gradient` in place before
each local step. No autograd graph is built over the penalty and no second model is held.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class FedProxConfig:
    """Settings of the fedprox objective.

    Args:
        mu: weight of the penalty (mu / 2) * ||local - global||^2; 0 is plain local training.
    """

    mu: float = 0.01

    def __post_init__(self) -> None:
        if not self.mu >= 0:
            raise ValueError(f"clients.fedprox.mu: must not be negative, got {self.mu}")


class ObjectiveConfig(Protocol):
    """What objectives read of the clients' configuration."""

    @property
    def fedprox(self) -> FedProxConfig: ...


Penalty = Callable[[int, Tensor, Tensor], None]
Objective = Callable[[ObjectiveConfig, Tensor, dict[str, Tensor], int], "Penalty | None"]


def none(config: ObjectiveConfig, global_parameters: Tensor, state: dict[str, Tensor], round_: int) -> None:
    """The loss alone."""


def fedprox(
    config: ObjectiveConfig, global_parameters: Tensor, state: dict[str, Tensor], round_: int
) -> Penalty | None:
    """FedProx (Li et al. 2020): the gradient of (mu / 2) * ||w - w_t||^2 is mu * (w - w_t)."""
    mu = config.fedprox.mu
    if not mu:
        return None

    def penalty(step: int, gradient: Tensor, local: Tensor) -> None:
        gradient.add_(local - global_parameters, alpha=mu)

    return penalty


OBJECTIVES: dict[str, Objective] = {"none": none, "fedprox": fedprox}
