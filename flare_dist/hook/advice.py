"""Advise on the optimizer that steps by what the hook returns; docs/guides/optimizers.md has the rule and reasons."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from flare_dist.hook.momentum import arrives_late, beta1_of, kind_of
from flare_dist.hook.state import SparseHookState

_BETAS = (0.0, 0.999)  # of Adam, if entries arrive late
_GPT = "for a GPT at density 0.01 on 2 ranks"
_BY_BETA1 = {  # losses of the GPT by density, with beta1 0 and 0.9, both with clip_norm=0.5 and each at its best rate
    0.1: (1.986, 2.303),
    0.03: (1.932, 2.666),
    0.01: (2.062, 2.784),
    0.001: (2.422, 2.909),
}
_DGC = ": accuracy .393 against .342 with momentum in SGD and .390 dense, for ResNet-18 at density 0.01 on 2 ranks"
_ADAPT = " (or give adapt=True)"
_DOCS = "(docs/guides/optimizers.md)"
_DENSE_ONLY = {
    "lion": "steps by the sign of a momentum, as far for entries that did not arrive as for those that did",
    "adafactor": "estimates second moments from whole rows and columns",
}
_LOSSES = {"lion": 3.118, "adafactor": 2.314}  # of the GPT


def advice(state: SparseHookState, optimizer: Optimizer, takes_clip_norm: bool = True) -> str | None:
    """Return one line on what to write instead of `optimizer` under these settings; None if it is right as it is.

    Clipping before the exchange is named if `attach` takes it here.
    """
    if not arrives_late(state):
        return None
    kind = kind_of(optimizer)
    density = state.config.density
    if kind == "adam":
        return _of_adam(optimizer, density, takes_clip_norm and state.preconditioning.clip_norm is None)
    if kind == "sgd":
        return _of_sgd(optimizer, density, state.config.rule, state.preconditioning.applies)
    if kind in _DENSE_ONLY:
        line = _line(optimizer, "torch.optim.AdamW", ["weight_decay"], lr=..., betas=_BETAS)
        return (
            f"attach: {_name(optimizer)} {_DENSE_ONLY[kind]}, and at density {density:g} few entries arrive in a step; "
            f"write {line} with a learning rate of its own: 1.733 with clip_norm=0.5 "
            f"against {_LOSSES[kind]}, {_GPT} {_DOCS}"
        )
    return None


def _of_adam(optimizer: Optimizer, density: float, may_clip: bool) -> str | None:
    beta1 = max(beta1_of(group) for group in optimizer.param_groups)
    if not beta1:
        return None
    nearest = min(_BY_BETA1, key=lambda measured: abs(math.log(measured / density)))
    without, with_beta1 = _BY_BETA1[nearest]
    clip = ", with attach(..., clip_norm=0.5)" if may_clip else ""
    return (
        f"attach: {_name(optimizer)} has beta1 {beta1:g}, and at density {density:g} the residual acts as momentum "
        f"already; write {_line(optimizer, _path(optimizer), betas=_BETAS)}{_ADAPT}{clip}: loss {without} against "
        f"{with_beta1} with beta1 0.9, for a GPT at density {nearest:g} on 2 ranks, clipped to 0.5 {_DOCS}"
    )


def _of_sgd(optimizer: Optimizer, density: float, rule: str, is_preconditioned: bool) -> str | None:
    momentum = max(float(group["momentum"]) for group in optimizer.param_groups)
    if not momentum:
        return None
    kind = "Nesterov momentum" if any(group.get("nesterov") for group in optimizer.param_groups) else "momentum"
    because = "dgc has momentum of its own" if rule == "dgc" else "the residual acts as momentum already"
    either = f", alone or with attach(..., error_feedback='dgc', momentum={momentum:g}){_DGC}"
    line = _line(optimizer, _path(optimizer), momentum=0, nesterov=False, dampening=0)
    return (
        f"attach: {_name(optimizer)} has {kind} {momentum:g}, and at density {density:g} {because}; "
        f"write {line}{_ADAPT}{'' if rule == 'dgc' or is_preconditioned else either} {_DOCS}"
    )


def check_preconditioned(optimizer: Optimizer, preconditioner: str, is_sharded: bool) -> None:
    """Raise ValueError with the line to write if the hook and `optimizer` would both scale the gradients."""
    kind = kind_of(optimizer)
    of_torch = type(optimizer).__module__.startswith("torch.optim")  # all of which scale, but SGD
    if preconditioner == "none" or kind == "sgd" or not (kind or of_torch):
        return
    line = _line(optimizer, "torch.optim.SGD", ["lr", "weight_decay"])
    allow = "; ZeRO stage 1 takes it with zero_allow_untested_optimizer: true" if is_sharded else ""
    raise ValueError(
        f"attach: preconditioner={preconditioner} returns updates, not gradients, and {_name(optimizer)} would "
        f"scale them once more; write {line}{allow} {_DOCS}"
    )


def _line(optimizer: Optimizer, path: str, same: list[str] | None = None, **changes: Any) -> str:
    """Write the call of `path` with the settings of `optimizer`, or those named in `same`, and these changes.

    What is the default of the class that is called is left out, and so is a setting that it does not take.
    """
    taken = _SIGNATURES.get(path) or inspect.signature(type(optimizer)).parameters
    settings = {name: value for name, value in optimizer.defaults.items() if same is None or name in same} | changes
    written = [
        f"{name}={'...' if value is ... else repr(_plain(value))}"
        for name in taken
        if name in settings
        for value in [settings[name]]
        if name in ("lr", "betas") or _plain(value) != taken[name].default
    ]
    groups = "model.parameters()" if len(optimizer.param_groups) == 1 else "groups"
    return f"optimizer = {path}({', '.join([groups, *written])})"


_SIGNATURES = {
    f"torch.optim.{kind.__name__}": inspect.signature(kind).parameters for kind in (torch.optim.AdamW, torch.optim.SGD)
}


def _plain(value: Any) -> Any:
    """Return the number that a tensor holds, for learning rates and betas may be tensors."""
    if isinstance(value, tuple):
        return tuple(_plain(each) for each in value)
    return value.item() if isinstance(value, Tensor) else value


def _name(optimizer: Optimizer) -> str:
    return type(optimizer).__name__


def _path(optimizer: Optimizer) -> str:
    is_torch = getattr(torch.optim, _name(optimizer), None) is type(optimizer)
    return f"torch.optim.{_name(optimizer)}" if is_torch else _name(optimizer)
