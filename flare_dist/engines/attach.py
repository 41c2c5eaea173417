"""`flare_dist.attach`: the sparse exchange in the training loop that somebody already has."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from flare_dist.comm.ddp_hook import SparseHookState, sparse_hook


def attach(target: Any, model: nn.Module | None = None, **settings: Any) -> SparseHookState:
    """Exchange gradients sparsely from now on; returns the state, to be kept for its memory and its byte count.

        state = attach(ddp, density=0.01)
        state = attach(accelerator, model, density=0.01)     # `model` as accelerator.prepare gave it back
        state = attach(engine, density=0.01)                 # of DeepSpeed, ZeRO stage 0 or 1

    `settings` are those of `SparseHookState`. Under Accelerate the loss scaler is found, and the memory is saved and
    loaded by accelerator.save_state and load_state: attach before load_state, or after it to start without a memory
    (from a checkpoint that has none). Raises ValueError where gradients would not go through the hook:
    the model is no DistributedDataParallel, or something else has taken its only hook. Never silently dense.
    """
    if isinstance(getattr(target, "_orig_mod", target), DistributedDataParallel):
        return attach_ddp(target, **settings)
    from flare_dist.engines.accelerate_hook import Accelerator, attach_accelerator, check_held, save_with

    if isinstance(target, Accelerator):
        if model is None:
            raise ValueError("attach: give it the model that accelerator.prepare returned, too")
        if target.distributed_type == "DEEPSPEED":
            check_held(target, model)
            state = attach(model, **settings)
            save_with(target, state, model)
            return state
        return attach_accelerator(target, model, **settings)
    if "deepspeed" in sys.modules:
        from flare_dist.engines.deepspeed import DeepSpeedEngine, attach_engine

        if isinstance(target, DeepSpeedEngine):
            return attach_engine(target, **settings)
    kinds = "a DistributedDataParallel model, an Accelerator or a DeepSpeed engine"
    raise ValueError(f"attach: takes {kinds}, not {type(target).__name__}")


def attach_ddp(model: nn.Module, **settings: Any) -> SparseHookState:
    """Register the hook on a DDP model, compiled or not."""
    ddp = getattr(model, "_orig_mod", model)
    if not isinstance(ddp, DistributedDataParallel):
        raise ValueError(
            f"attach: the model is {type(ddp).__name__}, not DistributedDataParallel, so there is no exchange to make "
            "sparse (a single process, FSDP, or not prepared yet?)"
        )
    if ddp._comm_hooks:  # DDP itself refuses only some second hooks, and after having noted them
        name = getattr(ddp._comm_hooks[0][0], "__name__", "a hook")
        raise ValueError(f"attach: the model has a communication hook already, {name}, and DDP takes only one")
    if ddp.mixed_precision is not None:
        raise ValueError("attach: DDP's mixed_precision takes the only hook; use autocast instead")
    state = SparseHookState(ddp, process_group=ddp.process_group, **settings)
    ddp.register_comm_hook(state, sparse_hook)
    return state
