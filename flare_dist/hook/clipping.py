"""Clip each rank's whole gradient before anything of it is sent.

Clipped after the exchange, a gradient has left the residual in full and arrives in part: what is cut off is lost. The
norm of a rank's gradient is known once its last bucket is there, so with `clip_norm` all buckets wait for the last one,
and no exchange overlaps with backward. Clipping by the norm of the step before would let them go, but a norm that
jumps makes the factor meet the wrong step: docs/guides/optimizers.md has what that cost.

A rank clips its own gradient, as Deep Gradient Compression does (Lin et al. 2018, https://arxiv.org/abs/1712.01887).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

TINY = 1e-6  # as torch.nn.utils.clip_grad_norm_ has it

Exchange = Callable[[Sequence[Tensor], Tensor], "torch.futures.Future[Tensor]"]


class Bucket(NamedTuple):
    """The flat gradients of some parameters."""

    parameters: Sequence[Tensor]
    buffer: Tensor


def clip(buckets: Sequence[Bucket], order: Iterable[Tensor], limit: float, scale: Tensor | None) -> None:
    """Scale all buckets, in place, so that the norm of them together is at most `limit` without the loss scale.

    Norms of tensors are added up in the `order` of all parameters, so that other buckets give the same bits. If a
    gradient is not finite, neither is what is left of it. A GPU is not waited for.
    """
    norms: dict[Tensor, Tensor] = {}
    for parameters, buffer in buckets:
        flat = buffer.float().split([parameter.numel() for parameter in parameters])
        norms.update(zip(parameters, torch._foreach_norm(list(flat))))
    device = buckets[0].buffer.device  # a model may lie on several
    of_tensors = [norms[parameter].to(device) for parameter in order if parameter in norms]
    norm = torch.linalg.vector_norm(torch.stack(of_tensors))
    if scale is not None:
        norm = norm / scale
    factor = (limit / (norm + TINY)).clamp(max=1)
    for _, buffer in buckets:
        buffer.mul_(factor.to(buffer.device))


class _Held(NamedTuple):
    """A bucket that waits, the future that gets its mean, and the error that came instead, if one did."""

    bucket: Bucket
    mean: torch.futures.Future[Tensor]
    errors: list[Exception]


class HeldBack:
    """The buckets of a step that wait for the last one."""

    def __init__(self) -> None:
        self._held: list[_Held] = []

    def clear(self) -> None:
        """Forget the buckets of a backward that was broken off."""
        self._held.clear()

    def hold(self, parameters: Sequence[Tensor], buffer: Tensor) -> torch.futures.Future[Tensor]:
        """Keep a bucket; the future that is returned gets what `release` makes of it."""
        devices: list[int | str | torch.device] | None = [buffer.device] if buffer.is_cuda else None
        held = _Held(Bucket(parameters, buffer), torch.futures.Future(devices=devices), [])
        self._held.append(held)
        return held.mean.then(partial(_take, held.errors))

    def release(self, order: Iterable[Tensor], limit: float, scale: Tensor | None, exchange: Exchange) -> None:
        """Clip all that are held by the norm of them together, and exchange one after the other."""
        released = list(self._held)
        self._held.clear()
        clip([held.bucket for held in released], order, limit, scale)
        for held in released:
            exchange(*held.bucket).add_done_callback(partial(_pass_on, held))


def _pass_on(held: _Held, done: torch.futures.Future[Tensor]) -> None:
    """Give the future of a bucket that was held the mean that another has, or an empty one and the error."""
    try:
        mean = done.value()
    except Exception as error:  # set_exception would hide it behind one of its own in DDP
        held.errors.append(error)
        mean = held.bucket.buffer[:0]
    held.mean.set_result(mean)


def _take(errors: Sequence[Exception], done: torch.futures.Future[Tensor]) -> Tensor:
    for error in errors:
        raise error
    return done.value()
