"""Train one model on all ranks by DDP, with the communication hook that `gradients.hook` names."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from flare_dist.comm.collectives import backend_of
from flare_dist.comm.config import GradientsConfig
from flare_dist.engines.attach_ddp import attach_ddp
from flare_dist.hook.library import LibraryHookState, bucket_cap_mb, library_hook
from flare_dist.hook.state import SparseHookState


def wrap(module: nn.Module, gradients: GradientsConfig, device: torch.device) -> DistributedDataParallel:
    """Wrap a model that is on `device` in DDP. Buffers stay each rank's own. All ranks call it together."""
    with warnings.catch_warnings():  # newer versions of torch have another name for it, older ones only this
        warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
        return DistributedDataParallel(
            module,
            device_ids=[device] if device.type == "cuda" else None,
            broadcast_buffers=False,
            find_unused_parameters=gradients.find_unused_parameters,
            bucket_cap_mb=bucket_cap_mb(gradients.hook, backend_of(None)),
        )


def register_hook(
    ddp: DistributedDataParallel, gradients: GradientsConfig, seed: int, scaler: Any, **settings: Any
) -> SparseHookState | LibraryHookState:
    """Exchange the gradients of `ddp` by the hook that the configuration names; returns the hook's state.

    `scaler` is the loss scaler, or None; `settings` are those of the sparse hook.
    """
    if gradients.hook == "sparse":
        sparse = attach_ddp(ddp, scaler=scaler, seed=seed, **vars(gradients.preconditioning), **settings)
        sparse.held_means.stop()  # the flat gradient is zeroed at every step
        return sparse
    state = LibraryHookState(gradients, ddp.process_group, seed)
    ddp.register_comm_hook(state, library_hook)
    return state
