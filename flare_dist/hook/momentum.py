"""Momentum beside a residual.

An entry that is not sent waits in the residual, about 1 / density steps, and arrives with the gradients of those steps
added up. That delay acts as momentum does, and momentum of the optimizer's own comes on top of it:

    Mitliagkas, Zhang, Hadjis and Ré, "Asynchrony begets Momentum, with an Application to Deep Learning", 2016,
    https://arxiv.org/abs/1605.09774

At density 1 nothing waits, and an optimizer keeps its momentum; so it does while most entries arrive soon.
"""

from __future__ import annotations

import math
from typing import Any
from weakref import ref

from torch.optim import Optimizer

from flare_dist.compression.compressor import density_in
from flare_dist.hook.state import SparseHookState

# A density between .3, at which beta1 .9 is better than 0, and .1, at which it is worse: docs/guides/optimizers.md
LATE = 0.2


def arrives_late(state: SparseHookState) -> bool:
    """Tell if entries wait long in a residual at the density in force, that of the warm-up while it lasts.

    Before the first step it is the density that the warm-up leads to. Behind dgc, which has momentum, any wait is long.
    """
    config = state.config
    density = density_in(config, state.step) if state.step else config.density
    if config.rule == "none" or density >= (1.0 if config.rule == "dgc" else LATE):
        return False
    sizes = (math.prod(shape) for shape in state.shapes.values())
    return any(config.count_kept(numel, density) < numel for numel in sizes)


def kind_of(optimizer: Optimizer) -> str:
    """Return adam, sgd, lion or adafactor, or nothing for an optimizer that there is no advice for.

    By the name of its class and its settings, since many libraries have an Adam of their own.
    """
    name = type(optimizer).__name__.lower()
    groups = optimizer.param_groups
    if "lion" in name or "adafactor" in name:
        return "lion" if "lion" in name else "adafactor"
    if "adam" in name and all("betas" in group for group in groups):
        return "adam"
    if "sgd" in name and all("momentum" in group for group in groups):
        return "sgd"
    return ""


def beta1_of(group: dict[str, Any]) -> float:
    return float(group["betas"][0])


def remove_momentum(optimizer: Optimizer) -> None:
    """Set beta1, momentum and Nesterov of every group to zero, in place; beta2 stays."""
    for group in optimizer.param_groups:
        if "betas" in group:
            beta1, *rest = group["betas"]
            group["betas"] = (0 * beta1, *rest)  # a tensor stays one
        if "momentum" in group:
            group["momentum"] = 0 * group["momentum"]
        if "nesterov" in group:
            group["nesterov"] = False


class NoMomentum:
    """Keep `optimizer` without momentum as long as the hook of `state` delays entries, whoever else sets it.

    PyTorch calls this before each step and after load_state_dict. So a scheduler that cycles momentum (OneCycleLR,
    CyclicLR) and a new group take no step with momentum, though their groups may show some between two steps.
    """

    def __init__(self, state: SparseHookState, optimizer: Optimizer) -> None:
        self._state = ref(state)
        optimizer.register_step_pre_hook(self)
        optimizer.register_load_state_dict_post_hook(self)
        self(optimizer)

    def __call__(self, optimizer: Optimizer, *step: Any) -> None:
        state = self._state()
        if state is not None and arrives_late(state):
            remove_momentum(optimizer)
