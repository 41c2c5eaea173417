"""The weights that synflow looks at: |W|, and no biases, whatever part of them a rank holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

Held = tuple[Tensor, int]  # what a rank holds of a parameter, and how many dimensions the whole one has


@torch.no_grad()
def make_positive(held: Sequence[Held]) -> None:
    """Make |W| of weights and zeros of biases, in place."""
    for own, dims in held:
        own.abs_() if dims > 1 else own.zero_()


@contextmanager
def positive(held: Sequence[Held]) -> Iterator[None]:
    """Make |W| of weights and zeros of biases as long as the block runs."""
    before = [own.clone() for own, _ in held]
    try:
        make_positive(held)
        yield
    finally:
        for (own, _), values in zip(held, before):
            own.copy_(values)
