"""Server optimizers: torch.optim on the flat global parameters, with the pseudo-gradient as their gradient."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop


def sgd(parameters: Tensor, lr: float, momentum: float) -> Optimizer:
    """lr 1 is FedAvg; with momentum FedAvgM (Hsu et al. 2019)."""
    return SGD([parameters], lr=lr, momentum=momentum)


def adam(parameters: Tensor, lr: float, momentum: float) -> Optimizer:
    """torch's Adam, with bias correction and eps 1e-8; not the FedAdam of Reddi et al. 2021."""
    return Adam([parameters], lr=lr)


def adamw(parameters: Tensor, lr: float, momentum: float) -> Optimizer:
    return AdamW([parameters], lr=lr)


def adagrad(parameters: Tensor, lr: float, momentum: float) -> Optimizer:
    return Adagrad([parameters], lr=lr)


def rmsprop(parameters: Tensor, lr: float, momentum: float) -> Optimizer:
    return RMSprop([parameters], lr=lr, momentum=momentum)


OPTIMIZERS: dict[str, Callable[[Tensor, float, float], Optimizer]] = {
    "sgd": sgd,
    "adam": adam,
    "adamw": adamw,
    "adagrad": adagrad,
    "rmsprop": rmsprop,
}
