"""FedProx: a proximal term keeps local training near the global model.

Tian Li, Anit Kumar Sahu, Manzil Zaheer, Maziar Sanjabi, Ameet Talwalkar, Virginia Smith,
"Federated Optimization in Heterogeneous Networks", MLSys 2020, https://arxiv.org/abs/1812.06127

Clients minimise f_k(w) + (mu / 2) * ||w - w_t||^2, whose second term has the gradient mu * (w - w_t).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from flare_dist.algorithms.algorithm import Algorithm, LocalContext, LocalWork, Penalty
from flare_dist.errors import check_least, check_range


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
        check_range("clients.fedprox.mu", self.mu, "[0, 1e38)")  # the range of float32
        check_least("clients.fedprox.decay", self.decay, 1)


def fedprox(config: FedProxConfig) -> Algorithm:
    """Add the gradient of the proximal term to every local step."""

    def brief(work: LocalWork) -> LocalWork:
        return work._replace(shrinking=work.shrinking * (1 - work.lr * mu_in(config, work.round)))

    def penalty(context: LocalContext) -> Penalty | None:
        mu = mu_in(config, context.round)
        if not mu:
            return None

        def add_gradient(gradient: Tensor, local: Tensor) -> None:
            gradient.add_(local - context.global_parameters, alpha=mu)

        return Penalty(add_gradient)

    return Algorithm(brief=brief, penalty=penalty)


def mu_in(config: FedProxConfig, round_: int) -> float:
    """Return the strength of the proximal term in a round, mu / decay^round."""
    return config.mu * config.decay**-round_
