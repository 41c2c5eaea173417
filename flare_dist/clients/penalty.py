"""What an objective is given, and what it makes of it for one client's round."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from flare_dist.layout import ParameterLayout


@dataclass(frozen=True)
class LocalContext:
    """What is fixed while one client trains for one round; flat vectors are float32 [total] and read only."""

    layout: ParameterLayout
    round: int  # from 1
    lr: float  # of the local optimizer in this round
    momentum: float
    global_parameters: Tensor
    state: dict[str, Tensor]  # the client's memory by name, e.g. its residual
    starts_at_global: bool = False  # the first step is taken at the global parameters themselves
    mask: Tensor | None = None  # bool [total]: of a sparse model, what the client begins with


@dataclass(frozen=True)
class Penalty:
    """The gradient of what is added to the loss.

    `add_gradient` adds it at `local` to `gradient` in place, once for each local step, in order. It is active for the
    first `steps` local steps, None = all; the local optimizer starts afresh when it ends. `moved`, where given, is how
    far the penalty alone has moved the local model so far: not part of the model delta.
    """

    add_gradient: Callable[[Tensor, Tensor], None]  # (gradient, local)
    steps: int | None = None
    moved: Tensor | None = None
