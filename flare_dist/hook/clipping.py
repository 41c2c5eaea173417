"""Clip each rank's whole gradient before anything of it is sent.

Clipped after the exchange, a gradient has left the residual in full and arrives in part: what is cut off is lost. The
norm of a rank's gradient is known once its last bucket is there, so with `clip_norm` all buckets wait for the last one,
and no exchange overlaps with backward. Clipping by the norm of the step before would let them go, but a norm that
jumps makes the factor meet the wrong step: docs/optimizers.md has what that cost.

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
    norm = torch.linalg.vector_norm(torch.stack([norms[parameter] for parameter in order if parameter in norms]))
    if scale is not None:
        norm = norm / scale
    factor = (limit / (norm + TINY)).clamp(max=1)
    for _, buffer in buckets:
        buffer.mul_(factor)


class HeldBack:
    """The buckets of a step that wait for the last one."""

    def __init__(self) -> None:
        self._buckets: list[tuple[Bucket, torch.futures.Future[Tensor]]] = []

    def clear(self) -> None:
        """Begin a step: those of a backward that was broken off are nobody's any more."""
        self._buckets.clear()

    def hold(self, parameters: Sequence[Tensor], buffer: Tensor) -> torch.futures.Future[Tensor]:
        """Keep a bucket; the future that is returned gets what `release` makes of it."""
        devices: list[int | str | torch.device] | None = [buffer.device] if buffer.is_cuda else None
        promised: torch.futures.Future[Tensor] = torch.futures.Future(devices=devices)
        self._buckets.append((Bucket(parameters, buffer), promised))
        return promised

    def release(self, order: Iterable[Tensor], limit: float, scale: Tensor | None, exchange: Exchange) -> None:
        """Clip all that are held by the norm of them together, and exchange one after the other."""
        buckets = list(self._buckets)
        self._buckets.clear()
        clip([bucket for bucket, _ in buckets], order, limit, scale)
        for bucket, promised in buckets:
            exchange(*bucket).add_done_callback(partial(_pass_on, promised))


def _pass_on(promised: torch.futures.Future[Tensor], done: torch.futures.Future[Tensor]) -> None:
    """Give a future the value, or the error, of another."""
    try:
        promised.set_result(done.value())
    except Exception as error:
        promised.set_exception(error)  # type: ignore[arg-type]
