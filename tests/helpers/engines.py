"""A small model, and plain SGD for it."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import SGD, Optimizer

CPU = torch.device("cpu")


def small_net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))


def sgd(parameters: list[nn.Parameter], momentum: float = 0.0) -> Optimizer:
    return SGD(parameters, lr=0.5, momentum=momentum)
