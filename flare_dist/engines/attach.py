"""Put the sparse exchange into the training loop that somebody already has (`flare_dist.attach`)."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from flare_dist.compression.gpu_trial import warm_up
from flare_dist.engines.attach_ddp import WorldOfOne, attach_ddp, hint_if_alone, is_alone
from flare_dist.engines.optimizers import follow_advice, handed_over, warn_of_clipping, watch_gradients
from flare_dist.hook.state import SparseHookState
from flare_dist.hook.wrappers import reshard, sharded_modules, unwrapped


def attach(
    target: Any,
    model: nn.Module | None = None,
    *,
    world_of_one: WorldOfOne = "raise",
    optimizer: Any = None,
    adapt: bool = False,
    **settings: Any,
) -> SparseHookState:
    """Exchange gradients sparsely from now on; returns the state, to be kept for its memory and its byte count.

        state = attach(ddp, density=0.01)
        state = attach(model, mesh=mesh, density=0.01)       # sharded by fully_shard, each replica on its own ranks
        state = attach(accelerator, model, density=0.01)     # `model` as accelerator.prepare gave it back
        state = attach(engine, density=0.01)                 # of DeepSpeed, ZeRO stage 0 or 1

    `ddp` may be compiled, or wrapped by Fabric. `settings` are those of `SparseHookState`. Under Accelerate the loss
    scaler is found, and the memory is saved and loaded by accelerator.save_state and load_state: attach before
    load_state, or after it to start without a memory (from a checkpoint that has none).

    `optimizer`, one or a list, is looked at: one line is logged if another suits this density better, with the line to
    write, and a warning comes once if it steps by other gradients than the hook returned, clipped ones for example.
    With `adapt` it also steps without momentum (beta1, Nesterov) wherever entries arrive late, whatever a scheduler or
    load_state_dict sets; beta2 and the learning rate stay. Otherwise nothing of it is touched
    (docs/guides/optimizers.md).

    Raises ValueError if gradients would not go through the hook: the model is no DistributedDataParallel, or something
    else has taken its only hook. Never silently dense. One process has nobody to exchange with: if its model is not
    wrapped, `world_of_one="warn"` warns and returns a state that sends and remembers nothing, so that one script serves
    any number of ranks.

    A copy of the model (deepcopy, AveragedModel, torch.save) has no hook: its first synchronised backward raises
    RuntimeError until it is attached again.
    """
    if world_of_one not in ("raise", "warn"):
        raise ValueError(f"attach: world_of_one must be raise or warn, got {world_of_one}")
    trained = target if model is None else model
    if adapt and optimizer is None:
        raise ValueError("attach: adapt=True changes an optimizer, got none; give optimizer=optimizer, too")
    if isinstance(trained, nn.Module):
        reshard(sharded_modules(trained))
    if optimizer is not None and isinstance(trained, nn.Module):
        state = _with_optimizer(target, model, world_of_one, optimizer, adapt, settings)
    else:
        state = _attach(target, model, world_of_one, **settings)
    if not state.config.is_dense:
        warm_up(parameter.device for parameter in state.parameters)
    return state


def _with_optimizer(
    target: Any,
    model: nn.Module | None,
    world_of_one: WorldOfOne,
    optimizer: Any,
    adapt: bool,
    settings: dict[str, Any],
) -> SparseHookState:
    """Attach, with advice for the optimizers of the model and a check of their steps."""
    trained = target if model is None else model
    handed = handed_over(optimizer, trained, settings.get("preconditioner", "none"))
    if isinstance(unwrapped(trained), DistributedDataParallel):
        hook = watch_gradients(handed)
        state = _attach(target, model, world_of_one, hook=hook, **settings)
        for each, watch in zip(handed, hook.watches):
            each.optimizer.register_step_pre_hook(watch.check)
        follow_advice(state, handed, adapt)
        return state
    state = _attach(target, model, world_of_one, **settings)
    if is_engine(trained):
        engine: Any = trained
        warn_of_clipping(engine, state)
        follow_advice(state, handed, adapt, takes_clip_norm=not engine.zero_optimization_stage())
    elif state.shard:
        follow_advice(state, handed, adapt, takes_clip_norm=False)
    return state


def _attach(
    target: Any, model: nn.Module | None = None, world_of_one: WorldOfOne = "raise", **settings: Any
) -> SparseHookState:
    """Exchange the gradients of one kind of target sparsely from now on."""
    _refuse_own(settings, "process_group")
    if isinstance(unwrapped(target), DistributedDataParallel):
        return attach_ddp(target, **settings)
    if "mesh" in settings or is_sharded(target):
        if settings.get("mesh") is None:
            raise ValueError("attach.mesh: the model is sharded, got no mesh; give the DeviceMesh of its replicas")
        from flare_dist.engines.fsdp_hook import attach_fsdp

        return attach_fsdp(target, world_of_one=world_of_one, **settings)
    if isinstance(target, nn.Module) and world_of_one == "warn" and is_alone() and not is_engine(target):
        return attach_ddp(target, world_of_one, **settings)
    from flare_dist.engines.accelerate_hook import Accelerator, attach_accelerator, check_held, save_with

    if isinstance(target, Accelerator):
        if model is None:
            raise ValueError("attach: give it the model that accelerator.prepare returned, too")
        _refuse_own(settings, "scaler")
        if target.distributed_type == "DEEPSPEED":
            check_held(target, model)
            state = _attach(model, **settings)
            save_with(target, state, model)
            return state
        return attach_accelerator(target, model, world_of_one=world_of_one, **settings)
    if is_engine(target):
        from flare_dist.engines.deepspeed_hook import attach_engine

        _refuse_own(settings, "scaler")
        inner = getattr(target, "optimizer", None)
        if settings.get("preconditioner", "none") != "none" and inner is not None:
            handed_over(inner, target, settings["preconditioner"])  # known, though nobody handed it over
        return attach_engine(target, **settings)
    kinds = "a DistributedDataParallel model, one of fully_shard (FSDP2), an Accelerator or a DeepSpeed engine"
    raise ValueError(f"attach: takes {kinds}, not {type(target).__name__}{hint_if_alone()}")


def _refuse_own(settings: dict[str, Any], key: str) -> None:
    """Raise ValueError if a setting of the hook is given that what it is attached to has itself."""
    if key in settings:
        raise ValueError(
            f"attach: {key} is that of what the hook is attached to, got {type(settings[key]).__name__}; leave it out"
        )


def is_sharded(target: Any) -> bool:
    """Tell whether `target` or a part of it is of `fully_shard`, without importing FSDP2."""
    if "torch.distributed.fsdp" not in sys.modules or not isinstance(target, nn.Module):
        return False
    from torch.distributed.fsdp import FSDPModule

    return any(isinstance(module, FSDPModule) for module in target.modules())


def is_engine(target: Any) -> bool:
    """Tell whether `target` is a DeepSpeed engine, without importing DeepSpeed."""
    if "deepspeed" not in sys.modules:
        return False
    from flare_dist.engines.deepspeed_engine import DeepSpeedEngine

    return isinstance(target, DeepSpeedEngine)
