"""What torch.compile, Fabric and DistributedDataParallel put around a model, and into the names of its parameters."""

from __future__ import annotations

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


def uncompiled_name(name: str) -> str:
    """Drop what torch.compile puts into the name of a parameter."""
    return name.replace("_orig_mod.", "")
