"""Make local optimizers of torch.optim over the tensors that an engine trains, often one flat vector of them all."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer


def sgd(parameters: list[nn.Parameter], lr: float, momentum: float, weight_decay: float) -> Optimizer:
    return SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay)


def adam(parameters: list[nn.Parameter], lr: float, momentum: float, weight_decay: float) -> Optimizer:
    return Adam(parameters, lr=lr, weight_decay=weight_decay)


def adamw(parameters: list[nn.Parameter], lr: float, momentum: float, weight_decay: float) -> Optimizer:
    return AdamW(parameters, lr=lr, weight_decay=weight_decay)


OPTIMIZERS: dict[str, Callable[[list[nn.Parameter], float, float, float], Optimizer]] = {
    "sgd": sgd,
    "adam": adam,
    "adamw": adamw,
}
