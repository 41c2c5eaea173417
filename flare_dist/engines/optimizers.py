"""The optimizers that are handed over to `flare_dist.attach`, whatever wraps them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any
from weakref import WeakSet

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from flare_dist.comm.collectives import rank_and_size
from flare_dist.hook.advice import advice, check_preconditioned
from flare_dist.hook.momentum import NoMomentum, kind_of
from flare_dist.hook.state import SparseHookState
from flare_dist.hook.watched import WatchedHook
from flare_dist.hook.witnesses import GradientWatch

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HandedOver:
    """One torch optimizer, and those of its parameters that the model trains."""

    optimizer: Optimizer
    trained: list[Tensor]


def handed_over(optimizer: Any, model: nn.Module, preconditioner: str = "none") -> list[HandedOver]:
    """Return the optimizers, one or a list; raise ValueError for one that the hook of `model` cannot go with."""
    given = list(optimizer) if isinstance(optimizer, (list, tuple)) else [optimizer]
    if not given:
        raise ValueError("attach: optimizer is an empty list; give the optimizers of the model, or leave it out")
    trained = {parameter for parameter in model.parameters() if parameter.requires_grad}
    sharded = getattr(model, "optimizer", None)  # of DeepSpeed
    found = []
    for each in given:
        inner, groups = _unwrapped(each, sharded)
        own = [parameter for group in groups for parameter in group if parameter in trained]
        if not own:
            raise ValueError(
                f"attach: {type(inner).__name__} holds no trained parameter of the model, so it does not step by what "
                "the hook returns; give the optimizer of this model"
            )
        check_preconditioned(inner, preconditioner, is_sharded=hasattr(sharded, "bit16_groups"))
        found.append(HandedOver(inner, own))
    return found


def _unwrapped(given: Any, of_engine: Any) -> tuple[Optimizer, list[Sequence[Tensor]]]:
    """Return the torch optimizer inside, and the model's parameters that it steps, by group.

    Inside DeepSpeed an optimizer's own groups may be flat partitions or float32 copies; its wrapper has the parameters.
    """
    wrappers = list(_chain(given))
    inner = wrappers[-1] if wrappers else given
    if not isinstance(inner, Optimizer):
        raise ValueError(
            f"attach: optimizer must be a torch optimizer or a list of them, got {type(given).__name__}; give the one "
            "that steps the model"
        )
    if any(inner is each for each in _chain(of_engine)):
        wrappers += _chain(of_engine)
    for wrapper in wrappers:
        for name in _GROUPS:
            if hasattr(wrapper, name):
                return inner, getattr(wrapper, name)
    return inner, [group["params"] for group in inner.param_groups]


_GROUPS = ("bit16_groups", "bf16_groups", "fp16_groups")  # of DeepSpeed's wrappers


def _chain(optimizer: Any) -> Iterator[Any]:
    """Unwrap an optimizer from what Accelerate, Fabric or DeepSpeed put around it, from outside to inside."""
    while optimizer is not None:
        yield optimizer
        optimizer = getattr(optimizer, "optimizer", None)


# PyTorch walks through its hooks while garbage collection may remove one of them; a WeakSet stands that.
_PRECONDITIONED: WeakSet[SparseHookState] = WeakSet()


def refuse_scaling(state: SparseHookState) -> None:
    """Raise ValueError as soon as an optimizer that nobody handed over is about to scale a preconditioner's updates."""
    if state.preconditioning.applies:
        _look_before_steps()
        _PRECONDITIONED.add(state)


@cache
def _look_before_steps() -> None:
    """Register with PyTorch, once in a process."""
    register_optimizer_step_pre_hook(_look)


def _look(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for state in list(_PRECONDITIONED):
        if state.unapplied.has_any:  # otherwise its gradients are not those of the hook
            own = {parameter for group in optimizer.param_groups for parameter in group["params"]}
            if not own.isdisjoint(state.parameters):
                check_preconditioned(optimizer, state.preconditioning.preconditioner, is_sharded=False)


def watch_gradients(handed: Sequence[HandedOver]) -> WatchedHook:
    """Make the hook for `handed`, by which their steps can be checked."""
    return WatchedHook([GradientWatch(each.trained) for each in handed])


def follow_advice(
    state: SparseHookState, handed: Sequence[HandedOver], adapt: bool, takes_clip_norm: bool = True
) -> None:
    """Log on rank 0 what each optimizer should be; with `adapt` keep them without momentum instead."""
    is_first = rank_and_size(state.process_group)[0] == 0
    for each in handed:
        line = advice(state, each.optimizer, takes_clip_norm)
        if adapt:
            NoMomentum(state, each.optimizer)
        if line is None or not is_first:
            continue
        if adapt and kind_of(each.optimizer) in ("adam", "sgd"):
            log.info("attach: %s steps without momentum while entries arrive late", type(each.optimizer).__name__)
        else:
            log.warning(line)


def warn_of_clipping(engine: Any, state: SparseHookState) -> None:
    """Warn if a DeepSpeed engine clips what the hook returns, which nothing sees while it trains."""
    limit = engine.gradient_clipping()
    settings = state.preconditioning
    takes_limit = not settings.applies and settings.clip_norm is None and not engine.zero_optimization_stage()
    if limit and (settings.applies or not state.config.is_dense):
        warnings.warn(
            f"attach: DeepSpeed clips what the hook returns to norm {limit:g}, when its full size has left the memory; "
            f"set gradient_clipping: 0{' and attach(clip_norm=...)' if takes_limit else ''}",
            stacklevel=4,
        )
