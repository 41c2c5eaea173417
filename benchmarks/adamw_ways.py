"""What the AdamW study compares: what the hook sends, and the optimizer that steps by what comes back.

A setting of a grid names a way and, if it needs them, density, betas, value_codec and more settings of the hook.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from adamw_prototypes import (
    Betas,
    Lion,
    attach_chosen_by_update,
    attach_clipped_by_last_norm,
    attach_led,
    attach_moment_of_mean,
    attach_one_selection,
    attach_shared_moment,
)
from adamw_rows import Setting
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Adafactor, AdamW, Optimizer

import flare_dist
from flare_dist import SparseHookState

WEIGHT_DECAY = 0.1  # of matrices
WEIGHT_DECAY_OF_SGD = 5e-4  # which adds it to the gradient, as residual networks are trained


class Way(NamedTuple):
    """How gradients are exchanged, what steps, and the norm to which gradients are clipped before it (inf for none)."""

    exchange: Callable[[DistributedDataParallel, dict[str, Any], Betas], SparseHookState]
    optimizer: Callable[[nn.Module, float, Betas], Optimizer]
    clip: float


def attach(model: DistributedDataParallel, settings: dict[str, Any], betas: Betas) -> SparseHookState:
    """Send gradients, as `attach` does by default."""
    return flare_dist.attach(model, **settings)


def attach_adam(model: DistributedDataParallel, settings: dict[str, Any], betas: Betas) -> SparseHookState:
    """Send each rank's own Adam update."""
    return flare_dist.attach(model, preconditioner="adam", betas=betas, **settings)


def adamw(model: nn.Module, lr: float, betas: Betas) -> Optimizer:
    """Make torch's AdamW, in one pass over the weights."""
    return AdamW(groups(model), lr=lr, betas=betas, fused=True)


def sgd(model: nn.Module, lr: float, betas: Betas) -> Optimizer:
    """Make SGD without momentum, which takes updates as they are and decays weights as AdamW does."""
    return SGD(groups(model), lr=lr, fused=True)


def sgd_with_momentum(model: nn.Module, lr: float, betas: Betas) -> Optimizer:
    """Make SGD, whose momentum is beta1."""
    return SGD(groups(model, WEIGHT_DECAY_OF_SGD), lr=lr, momentum=betas[0], fused=True)


def lion(model: nn.Module, lr: float, betas: Betas) -> Optimizer:
    """Make Lion."""
    return Lion(groups(model), lr=lr, betas=betas)


def adafactor(model: nn.Module, lr: float, betas: Betas) -> Optimizer:
    """Make torch's Adafactor, whose betas are not numbers: it has no first moment, and the second's rises to 1."""
    return Adafactor(groups(model), lr=lr)


def groups(model: nn.Module, weight_decay: float = WEIGHT_DECAY) -> list[dict[str, Any]]:
    """Divide the trained parameters into those that decay, which are matrices and kernels, and those that do not."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in trained if parameter.dim() >= 2]
    others = [parameter for parameter in trained if parameter.dim() < 2]
    divided = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in divided if group["params"]]


WAYS = {
    "dense": Way(attach, adamw, clip=1.0),
    "ec": Way(attach, adamw, clip=math.inf),
    "ec_clipped_by_last_norm": Way(attach_clipped_by_last_norm, adamw, clip=math.inf),
    "p": Way(attach_adam, sgd, clip=math.inf),
    "p_one_selection": Way(attach_one_selection, sgd, clip=math.inf),
    "p_shared_moment": Way(attach_shared_moment, sgd, clip=math.inf),
    "p_moment_of_mean": Way(attach_moment_of_mean, sgd, clip=math.inf),
    "ec_led": Way(attach_led, adamw, clip=math.inf),
    "s": Way(attach_chosen_by_update, adamw, clip=math.inf),
    "sgd": Way(attach, sgd_with_momentum, clip=math.inf),  # dense at density 1
    "lion": Way(attach, lion, clip=math.inf),
    "adafactor": Way(attach, adafactor, clip=math.inf),
}


def hook_settings(setting: Setting) -> dict[str, Any]:
    """Collect the settings of the hook."""
    return {"density": setting.density, "value_codec": setting.value_codec} | read_settings(setting.settings)


def read_settings(text: str) -> dict[str, Any]:
    """Read "scope=global update_clip=inf" into keys and values."""
    return {name: _value(value) for name, value in (pair.split("=", 1) for pair in text.split())}


def _value(text: str) -> Any:
    """Read a number, or take a word as it is; inf is a number."""
    if text == "inf":
        return math.inf
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text
