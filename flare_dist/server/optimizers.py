"""Server optimizers: torch.optim on the flat global parameters, with the pseudo-gradient as their gradient."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
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


def optimizer_state(optimizer: Optimizer, name: str) -> dict[str, Any]:
    """What a checkpoint keeps of an optimizer: its state, and whose it is; not its settings."""
    return {"name": name, "state": optimizer.state_dict()["state"]}


def load_optimizer_state(optimizer: Optimizer, name: str, saved: dict[str, Any], key: str) -> None:
    """Copy a state that `optimizer_state` gave; the settings stay those that the optimizer was made with.

    Raises ValueError naming the dotted `key` where the state is another optimizer's.
    """
    if saved["state"] and saved["name"] != name:
        raise ValueError(f"{key}: the checkpoint holds the state of {saved['name']}, not of {name}")
    if not saved["state"]:
        return
    settings = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict(copy.deepcopy({"state": saved["state"], "param_groups": settings}))
    for group in optimizer.param_groups:
        if group.get("momentum"):  # rmsprop does not make the buffer where there was no momentum before
            for parameter in group["params"]:
                optimizer.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))


OPTIMIZERS: dict[str, Callable[[Tensor, float, float], Optimizer]] = {
    "sgd": sgd,
    "adam": adam,
    "adamw": adamw,
    "adagrad": adagrad,
    "rmsprop": rmsprop,
}
