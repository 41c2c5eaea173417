"""Attach the sparse hook under Accelerate, and save its memory with Accelerate's own state, as long as the model is."""

from __future__ import annotations

import weakref
from typing import Any

from accelerate import Accelerator
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from flare_dist.engines.attach_ddp import attach_ddp
from flare_dist.engines.fsdp_hook import attach_fsdp
from flare_dist.hook.checkpoint import NAME, load_named, save_hook_state
from flare_dist.hook.state import SparseHookState
from flare_dist.hook.wrappers import unwrapped


def attach_accelerator(accelerator: Accelerator, model: nn.Module, **settings: Any) -> SparseHookState:
    """Attach the hook to a model that `accelerator` prepared; its memory goes with save_state and load_state.

    Accelerate itself would drop a hook that is not its own, and saves what is registered with it on one rank only.
    """
    if accelerator.is_fsdp2 or _bare(model) is not model:  # if it is not wrapped, the error of attach_ddp explains more
        check_held(accelerator, model)
    if accelerator.is_fsdp2:
        state = attach_fsdp(model, **{"mesh": _mesh_of(accelerator)} | settings)
    else:
        state = attach_ddp(model, scaler=accelerator.scaler, **settings)
    save_with(accelerator, state, model)
    return state


def _mesh_of(accelerator: Accelerator) -> Any:
    """Return the mesh on which `accelerator` has sharded; raises ValueError if that is one replica."""
    parallelism = accelerator.parallelism_config
    if parallelism is None or not parallelism.dp_replicate_enabled:
        raise ValueError(
            "attach: Accelerate has sharded one replica over all ranks, which leaves nobody to exchange with; divide "
            "them by ParallelismConfig(dp_replicate_size=..., dp_shard_size=...), or do not attach"
        )
    return accelerator.torch_device_mesh[tuple(parallelism.fsdp_dim_names)]


def check_held(accelerator: Accelerator, model: nn.Module) -> None:
    """Raise ValueError if `accelerator` would save its state without this model."""
    if _place(accelerator, model) is None:
        raise ValueError("attach: the accelerator does not hold this model; give it what accelerator.prepare returned")


def save_with(accelerator: Accelerator, state: SparseHookState, model: nn.Module) -> None:
    """Save and load the hook's memory, one file a rank, whenever `accelerator` does its own state.

    Files are called after the place of `model` among the accelerator's models, as its own are. A model that it has let
    go, by free_memory, is not saved any more, and nothing here keeps it or its memory alive.
    """
    saves = accelerator._save_model_state_pre_hook
    loads = accelerator._load_model_state_pre_hook
    for hooks in (saves, loads):
        for key in [key for key, hook in hooks.items() if _is_of(hook, model)]:  # attached anew
            del hooks[key]
    memory_of = _MemoryOf(accelerator, state, model, old_name=_name(len(saves)))  # older versions counted the hooks
    handles = [
        accelerator.register_save_state_pre_hook(memory_of.save),
        accelerator.register_load_state_pre_hook(memory_of.load),
    ]
    weakref.finalize(state, lambda: [handle.remove() for handle in handles]).atexit = False


class _MemoryOf:
    """Save and load the memory of one model's hook; holds neither the model nor the hook's state."""

    def __init__(self, accelerator: Accelerator, state: SparseHookState, model: nn.Module, old_name: str) -> None:
        self._accelerator = weakref.ref(accelerator)
        self._state = weakref.ref(state)
        self.model = weakref.ref(_bare(model))
        self._old_name = old_name

    def _found(self) -> tuple[SparseHookState, str] | None:
        """Find the hook's state and the name of its files; None if the accelerator has let the model go."""
        accelerator = self._accelerator()
        state = self._state()
        model = self.model()
        if accelerator is None or state is None or model is None:
            return None
        place = _place(accelerator, model)
        return None if place is None else (state, _name(place))

    def save(self, models: list[nn.Module], weights: list[Any], directory: str) -> None:
        found = self._found()
        if found is not None:
            state, name = found
            save_hook_state(state, directory, name)

    def load(self, models: list[nn.Module], directory: str) -> None:
        found = self._found()
        if found is not None:
            state, name = found
            load_named(state, directory, name, self._old_name, missing="zero")


def _is_of(hook: Any, model: nn.Module) -> bool:
    """Tell whether a hook of an accelerator saves or loads a memory of this model."""
    owner = getattr(hook, "__self__", None)
    return isinstance(owner, _MemoryOf) and owner.model() is _bare(model)


def _place(accelerator: Accelerator, model: nn.Module) -> int | None:
    """Find the model's place among those that the accelerator saves; it keeps them without DDP.

    Not among the `models` that it gives to hooks: when it loads, other hooks may have emptied that list.
    """
    bare = _bare(model)
    return next((number for number, held in enumerate(accelerator._models) if _bare(held) is bare), None)


def _bare(model: nn.Module) -> nn.Module:
    """Unwrap the model from what compiles it and from DDP."""
    inner: nn.Module = unwrapped(model)
    return _bare(inner.module) if isinstance(inner, DistributedDataParallel) else inner


def _name(number: int) -> str:
    return f"{NAME}-{number}" if number else NAME
