"""Put the tensors of a model together that the ranks of a host have divided among them."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def whole(value: Any) -> Tensor:
    """Return a tensor of the model's, put together if it is divided; all ranks of the host call it together."""
    if hasattr(value, "full_tensor"):  # FSDP2
        value = value.full_tensor()
    elif hasattr(value, "ds_id"):  # ZeRO 3
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters([value]):
            return value.detach().clone()
    found: Tensor = value.detach()
    return found
