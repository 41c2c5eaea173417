"""Register the sparse hook on a DistributedDataParallel model, bare or wrapped."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any, Literal

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from flare_dist.comm.collectives import rank_and_size
from flare_dist.engines.optimizers import refuse_scaling
from flare_dist.hook.ddp import sparse_hook
from flare_dist.hook.state import SparseHookState
from flare_dist.hook.watch import HookWatch
from flare_dist.hook.wrappers import unwrapped

WorldOfOne = Literal["raise", "warn"]


def attach_ddp(
    model: nn.Module, world_of_one: WorldOfOne = "raise", hook: Callable[..., Any] = sparse_hook, **settings: Any
) -> SparseHookState:
    """Register the hook, `sparse_hook` or one around it, on a DDP model, compiled, wrapped by Fabric or not."""
    ddp = unwrapped(model)
    if not isinstance(ddp, DistributedDataParallel):
        if world_of_one == "warn" and is_alone():
            warnings.warn("attach: one process, so nothing is exchanged and training is dense", stacklevel=4)
            return SparseHookState(ddp, **settings)
        raise ValueError(
            f"attach: the model is {type(ddp).__name__}, not DistributedDataParallel, so there is no exchange to make "
            f"sparse (a single process, FSDP1, or not prepared yet?){hint_if_alone()}"
        )
    _forget_copied_hook(ddp)
    check_ddp(ddp)
    state = SparseHookState(ddp, process_group=ddp.process_group, **settings)
    ddp.register_comm_hook(state, hook)
    ddp.register_forward_hook(HookWatch(ddp, state))
    refuse_scaling(state)
    return state


def check_ddp(ddp: DistributedDataParallel) -> None:
    """Raise ValueError if some of the gradients would not go through a hook of this model."""
    if ddp._use_python_reducer:
        raise ValueError(
            "attach: DDP was wrapped under torch._dynamo.config.optimize_ddp = 'python_reducer', which hands its hooks "
            "no buckets; set it to 'ddp_optimizer' before wrapping"
        )
    if any(hasattr(parameter, "_in_backward_optimizers") for parameter in ddp.parameters()):
        raise ValueError(
            "attach: _apply_optimizer_in_backward takes DDP's only hook; step the optimizer after backward"
        )
    if ddp._delay_all_reduce_params:
        raise ValueError("attach: DDP exchanges delay_all_reduce_named_params without its hook; leave them out")
    if ddp._comm_hooks:  # DDP itself refuses only some second hooks, and after having noted them
        name = getattr(ddp._comm_hooks[0][0], "__name__", "a hook")
        raise ValueError(f"attach: the model has a communication hook already, {name}, and DDP takes only one")
    if ddp.mixed_precision is not None:
        raise ValueError("attach: DDP's mixed_precision takes the only hook; use autocast instead")


def is_alone() -> bool:
    """Tell whether this is the only process, of the process group or by the launcher's word."""
    return rank_and_size(None)[1] == 1 and int(os.environ.get("WORLD_SIZE", "1")) == 1


def hint_if_alone() -> str:
    return "; for a script that also runs as one process, give world_of_one='warn'" if is_alone() else ""


def _forget_copied_hook(ddp: DistributedDataParallel) -> None:
    """Remove what a copied model still holds of the original's hook: no reducer calls it."""
    watches = {number: hook for number, hook in ddp._forward_hooks.items() if isinstance(hook, HookWatch)}
    if watches and not any(watch.is_on(ddp) for watch in watches.values()):
        ddp._comm_hooks.clear()
        for number in watches:
            del ddp._forward_hooks[number]
