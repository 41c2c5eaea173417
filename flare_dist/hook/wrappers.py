"""What torch.compile, Fabric and DistributedDataParallel put around a model, and into the names of its parameters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel


def unwrapped(model: Any) -> Any:
    """Unwrap the model from torch.compile and from Fabric's wrapper, down to DistributedDataParallel."""
    while isinstance(model, nn.Module) and not isinstance(model, DistributedDataParallel):
        inner = [model._modules[name] for name in ("_orig_mod", "_forward_module") if name in model._modules]
        if not inner:
            break
        model = inner[0]
    return model


def plain_name(name: str) -> str:
    """Drop what torch.compile and activation checkpointing put into the name of a parameter."""
    return name.replace("_orig_mod.", "").replace("_checkpoint_wrapped_module.", "")


def sharded_modules(model: nn.Module) -> list[Any]:
    """List the modules that fully_shard was called on."""
    return [each for each in model.modules() if any(kind.__name__ == "FSDPModule" for kind in type(each).__mro__)]


def reshard(modules: Iterable[Any]) -> None:
    """Let shards be the parameters again: a forward without a backward leaves those of the root gathered."""
    for module in modules:
        module.reshard()
