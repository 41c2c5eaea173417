"""Preconditioning of a rank's gradient before error feedback takes it: none, or a step in units of the update.

A preconditioner is a function (config, gradient, memory, into, sizes): it replaces `gradient`, the flat gradients of
tensors of these `sizes`, and writes to `into` what becomes of `memory`, vectors by name. Nothing else of the exchange
knows of it. The one here is Adam's (Kingma and Ba 2015) without its first moment, for each rank by itself:

    v <- b2 v + (1 - b2) g^2        u = g / (sqrt(v / (1 - b2^t)) + eps), cut off at +-update_clip

An entry of the residual waits for about 1 / density steps until it is sent, which acts as momentum (Mitliagkas et al.
2016), and so beta1 is 0. Selection then compares updates, not gradients. The nearest relatives precondition with
momentum: Quantized Adam with error feedback (Chen et al. 2020), Efficient-Adam (Chen et al. 2022). The user's step is
p <- p - lr (mean + wd p): torch.optim.SGD with weight_decay, which then is AdamW's, and momentum 0.

u has no unit: the weight that a rank's loss gives to its batch (unequal numbers of labels) falls out of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from flare_dist.compression.error_feedback import State
from flare_dist.errors import check_choice, check_number, check_range

# Entries that a CPU takes at a time: gradient, second moment and scratch then stay in its cache from step to step.
_CACHED = 2**18


@dataclass(frozen=True)
class Preconditioning:
    """Choose what each rank makes of its gradient before error feedback.

    Args:
        preconditioner: none or adam; the optimizer outside is then SGD without momentum.
        betas: of adam; beta1 must be 0, for what waits in the residual is momentum enough.
        eps: added to the root of the second moment, above 0.
        update_clip: largest magnitude of an entry, above 0; inf for none.
        clip_norm: of none: the norm to which each rank clips its whole gradient, above 0; None for none.
    """

    preconditioner: str = "none"
    betas: tuple[float, float] = (0.0, 0.99)
    eps: float = 1e-8
    update_clip: float = 3.0
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        check_choice("gradients.preconditioner", self.preconditioner, PRECONDITIONERS)
        got = list(self.betas) if isinstance(self.betas, Sequence) else self.betas
        if not isinstance(got, list) or [isinstance(each, Real) for each in got] != [True, True] or not 0 <= got[1] < 1:
            raise ValueError(f"gradients.betas: must be 0 and a number in [0, 1), got {got}; use [0, 0.99]")
        if got[0] != 0:
            raise ValueError(
                f"gradients.betas: beta1 must be 0, for what waits in the residual acts as momentum, got {got}; use "
                f"[0, {got[1]}]"
            )
        object.__setattr__(self, "betas", (float(got[0]), float(got[1])))
        check_number("gradients.eps", self.eps)
        check_number("gradients.update_clip", self.update_clip)
        if not 0 < self.eps < math.inf:
            raise ValueError(f"gradients.eps: must be above 0, got {self.eps}; use 1e-8")
        if not self.update_clip > 0:
            raise ValueError(f"gradients.update_clip: must be above 0, got {self.update_clip}; use inf for none")
        check_range("gradients.clip_norm", self.clip_norm, "(0, inf)")

    @property
    def applies(self) -> bool:
        """Tell if gradients are preconditioned at all."""
        return self.preconditioner != "none"

    @property
    def record(self) -> Preconditioner:
        """Return the functions and names of the preconditioner that is chosen."""
        return PRECONDITIONERS[self.preconditioner]


class Apply(Protocol):
    """(config, gradient, memory, into, sizes) -> None."""

    def __call__(
        self, config: Preconditioning, gradient: Tensor, memory: State, into: State, sizes: Sequence[int], /
    ) -> None: ...


class Preconditioner(NamedTuple):
    """A preconditioner, and what it remembers of every tensor."""

    vectors: tuple[str, ...]  # as long as the gradient, zero at first
    counts: tuple[str, ...]  # one number a tensor, zero at first
    apply: Apply


def keep(config: Preconditioning, gradient: Tensor, memory: State, into: State, sizes: Sequence[int]) -> None:
    """Leave the gradient as it is."""


def adam(config: Preconditioning, gradient: Tensor, memory: State, into: State, sizes: Sequence[int]) -> None:
    """Turn the gradient into Adam's update without momentum, as torch.optim's fused step has it.

    Every tensor counts its updates for itself, since some are trained from the start and others later; a gradient of
    zero counts as well. A gradient that is not finite leaves NaN, and so does one whose square overflows (from 1.8e20
    on in float32, with b2 = 0.99): behind an infinite second moment all updates of its entry would be 0.
    """
    updates = into["updates"].copy_(memory["updates"]).add_(1)
    steps = updates.unbind()
    old, new = memory["second_moment"], into["second_moment"]
    limit = gradient.numel() if gradient.is_cuda else _CACHED
    scratch = torch.zeros(2, min(limit, gradient.numel()), dtype=gradient.dtype, device=gradient.device)
    for pieces in _pieces(sizes, limit):
        start, end = pieces[0].start, pieces[-1].end
        new[start:end].copy_(old[start:end])
        # AdamW's step upwards at rate 1, with a decay of 1 that leaves nothing of what was there, is the update. With
        # beta1 = 0 the first moment is the gradient.
        update, first_moment = scratch[:, : end - start].unbind()
        torch._fused_adamw_(
            [update[piece.start - start : piece.end - start] for piece in pieces],
            [gradient[piece.start : piece.end] for piece in pieces],
            [first_moment[piece.start - start : piece.end - start] for piece in pieces],
            [new[piece.start : piece.end] for piece in pieces],
            [],
            [steps[piece.tensor] for piece in pieces],
            lr=1.0,
            beta1=0.0,
            beta2=config.betas[1],
            weight_decay=1.0,
            eps=config.eps,
            amsgrad=False,
            maximize=True,
        )
        torch.clamp(update, -config.update_clip, config.update_clip, out=gradient[start:end])
        gradient[start].add_(0 * new[start:end].amax())  # NaN if it is infinite, and a GPU need not be waited for


class _Piece(NamedTuple):
    """Some consecutive entries of one tensor, by their places in the flat vector."""

    tensor: int
    start: int
    end: int


def _pieces(sizes: Sequence[int], limit: int) -> Iterator[list[_Piece]]:
    """Yield all entries in groups of consecutive pieces with at most `limit` entries together.

    A tensor is divided at multiples of `limit` from its own beginning, wherever it is: the last entries of a piece may
    be computed by other instructions than the rest, and other buckets shall give the same bits.
    """
    group: list[_Piece] = []
    offset = 0
    for tensor, size in enumerate(sizes):
        for start in range(0, size, limit or 1):
            piece = _Piece(tensor, offset + start, offset + min(start + limit, size))
            if group and piece.end - group[0].start > limit:
                yield group
                group = []
            group.append(piece)
        offset += size
    if group:
        yield group


def second_moment_scale(saved_by: int, size: int) -> float:
    """Return the factor on second moments that one number of ranks has saved, for another number of ranks.

    With the same batch of all ranks together a rank has saved_by / size of the examples that it had, so the variance of
    its gradient is size / saved_by times as large, and of noise a second moment mostly consists. Where the batch of a
    rank stays instead, 1 would be right; the wrong factor is forgotten after about 1 / (1 - b2) steps.
    """
    return size / saved_by


PRECONDITIONERS: dict[str, Preconditioner] = {
    "none": Preconditioner((), (), keep),
    "adam": Preconditioner(("second_moment",), ("updates",), adam),
}
