"""Clipping by the norm of a rank's whole gradient, before error feedback takes it.

Clipped after the exchange, a gradient has left the residual in full and arrives in part: what is cut off is lost. In a
hook the norm of the whole gradient is known only once the last bucket is there, when most have been sent. So a step is
clipped by the norm of the step before:

    g_t <- g_t * min(1, clip_norm / ||g_(t-1)||)

A rank clips its own gradient, as Deep Gradient Compression does (Lin et al. 2018, https://arxiv.org/abs/1712.01887).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from flare_dist.compression.error_feedback import State

TINY = 1e-6  # as torch.nn.utils.clip_grad_norm_ has it


class Limit(Protocol):
    """The part of the settings that is read here."""

    @property
    def clip_norm(self) -> float | None: ...


def clip(config: Limit, gradient: Tensor, memory: State, into: State, sizes: Sequence[int]) -> None:
    """Scale the gradient by `memory["norm"]`, that of the step before; what its own tensors have goes to `into`.

    A norm of 0, before the first step, leaves it as it is.
    """
    assert config.clip_norm is not None
    torch.stack(torch._foreach_norm(list(gradient.split(list(sizes)))), out=into["norms"])
    gradient.mul_((config.clip_norm / (memory["norm"] + TINY)).clamp(max=1))
