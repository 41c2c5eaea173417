"""The loss scale, and what is not finite under it: both on the device, without waiting for it."""

from __future__ import annotations

from typing import Any, Protocol
from weakref import proxy

import torch
from torch import Tensor


class LossScaler(Protocol):
    """The part of a torch.amp.GradScaler that the hook needs."""

    def is_enabled(self) -> bool: ...

    def scale(self, outputs: Tensor, /) -> Tensor: ...


class EngineScale:
    """The loss scale of a DeepSpeed engine, in the shape of a GradScaler. It does not keep the engine alive."""

    def __init__(self, engine: Any) -> None:
        self.engine = proxy(engine)

    def is_enabled(self) -> bool:
        return bool(self.engine.fp16_enabled())

    def scale(self, outputs: Tensor) -> Tensor:
        scaled: Tensor = outputs * self.engine.optimizer.loss_scale
        return scaled


class Failures:
    """The buckets of one step, and whether each was not finite somewhere: boolean scalars on the device."""

    def __init__(self) -> None:
        self._of_buckets: list[Tensor] = []

    def note(self, failed: Tensor) -> None:
        """Remember whether a bucket was not finite on some rank; called from several threads, as buckets arrive."""
        self._of_buckets.append(failed)

    def clear(self) -> None:
        """Begin a step."""
        self._of_buckets.clear()

    def of_step(self, is_whole: bool) -> Tensor | None:
        """Tell if the step came to nothing, as one that is not whole does; None if no bucket has come."""
        failures = self._of_buckets if is_whole else [*self._of_buckets, torch.ones((), dtype=torch.bool)]
        if not failures:
            return None
        return torch.stack([failed.to(failures[0].device) for failed in failures]).any()


def not_finite(vector: Tensor) -> Tensor:
    """Tell if an entry is not finite, by a scalar on the device that is true then.

    It takes two passes, a tenth of the time of isfinite(). On a GPU it is two launches, by the largest magnitude, which
    is NaN if there is one: times 0 it is NaN or 0.
    """
    if not vector.numel():
        return torch.zeros((), dtype=torch.bool, device=vector.device)
    if vector.is_cuda:
        return torch.linalg.vector_norm(vector, torch.inf) * 0
    return ~torch.stack([vector.amax(), vector.amin()]).isfinite().all()


def scale_of(scaler: LossScaler | None, device: torch.device) -> Tensor | None:
    """Return the loss scale as a scalar on the device; None without an enabled scaler."""
    if scaler is None or not scaler.is_enabled():
        return None
    return scaler.scale(torch.ones((), device=device))
