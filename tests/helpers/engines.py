"""A small model, plain SGD for it, and settings of all optimizers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Optimizer

CPU = torch.device("cpu")
DEEPSPEED_SECONDS = 300.0  # to start ranks: importing DeepSpeed takes seconds, and more on a busy machine
OPTIMIZER_SETTINGS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "momentum": {"momentum": 0.9, "weight_decay": 0.01},
    "adam": {"optimizer": "adam", "lr": 0.01, "weight_decay": 0.1},
    "adamw": {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.1},
}


def small_net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))


def sgd(parameters: list[nn.Parameter], momentum: float = 0.0) -> Optimizer:
    return SGD(parameters, lr=0.5, momentum=momentum)
