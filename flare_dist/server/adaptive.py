"""Adaptive federated optimisation: the server steps as Adagrad, Adam or Yogi do, equation for equation.

Sashank J. Reddi, Zachary Charles, Manzil Zaheer, Zachary Garrett, Keith Rush, Jakub Konecny, Sanjiv Kumar,
H. Brendan McMahan, "Adaptive Federated Optimization", ICLR 2021, https://arxiv.org/abs/2003.00295

torch.optim's Adam and Adagrad are other methods (bias correction, another place of the small constant) and have their
own names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

SecondMoment = Callable[[Tensor, Tensor, float], object]  # updates (v, Delta^2, beta2) in place


def adagrad_moment(v: Tensor, squared: Tensor, beta2: float) -> None:
    """Update v <- v + Delta^2."""
    v.add_(squared)


def adam_moment(v: Tensor, squared: Tensor, beta2: float) -> None:
    """Update v <- beta2 * v + (1 - beta2) * Delta^2."""
    v.mul_(beta2).add_(squared, alpha=1 - beta2)


def yogi_moment(v: Tensor, squared: Tensor, beta2: float) -> None:
    """Update v <- v - (1 - beta2) * Delta^2 * sign(v - Delta^2)."""
    v.addcmul_(squared, torch.sign(v - squared), value=beta2 - 1)


class FederatedAdaptive(Optimizer):
    """FedAdagrad, FedAdam and FedYogi (Reddi et al. 2021, algorithm 2) on one flat parameter.

    m <- beta1 * m + (1 - beta1) * Delta, v by `second_moment`, w <- w + lr * m / (sqrt(v) + tau); m_0 = 0, v_0 = tau^2,
    no bias correction. Delta is minus the gradient.
    """

    def __init__(
        self, parameters: Tensor, lr: float, betas: tuple[float, float], tau: float, second_moment: SecondMoment
    ) -> None:
        super().__init__([parameters], {"lr": lr, "betas": betas, "tau": tau})
        self.second_moment = second_moment
        self.initial = {"v": tau**2}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Step on the gradient of the parameter."""
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            tau = group["tau"]
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["m"] = torch.zeros_like(parameter)
                    state["v"] = torch.full_like(parameter, tau**2)
                state["m"].mul_(beta1).sub_(parameter.grad, alpha=1 - beta1)
                self.second_moment(state["v"], parameter.grad.square(), beta2)
                parameter.addcdiv_(state["m"], state["v"].sqrt().add_(tau), value=group["lr"])
