"""Local optimizers: torch.optim over the one flat parameter vector, which for elementwise rules is the same thing."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer


def sgd(parameters: Tensor, lr: float, momentum: float, weight_decay: float) -> Optimizer:
    return SGD([parameters], lr=lr, momentum=momentum, weight_decay=weight_decay)


def adam(parameters: Tensor, lr: float, momentum: float, weight_decay: float) -> Optimizer:
    return Adam([parameters], lr=lr, weight_decay=weight_decay)


def adamw(parameters: Tensor, lr: float, momentum: float, weight_decay: float) -> Optimizer:
    return AdamW([parameters], lr=lr, weight_decay=weight_decay)


OPTIMIZERS: dict[str, Callable[[Tensor, float, float, float], Optimizer]] = {"sgd": sgd, "adam": adam, "adamw": adamw}
