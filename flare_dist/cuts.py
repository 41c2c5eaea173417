"""Slices of tensors that one rank of several holds: rows of a weight, or a piece of the flattened weight."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from flare_dist.layout import ParameterLayout

FLAT = -1  # in place of a dimension: the tensor is flattened first


class Cut(NamedTuple):
    """A slice of a tensor along one dimension, and the shape of the whole; a number is everybody's.

    With `dim` FLAT it is a slice of the flattened tensor, as ZeRO has them, and a number is one rank's.
    """

    dim: int
    start: int
    stop: int
    shape: tuple[int, ...]

    @classmethod
    def whole(cls, shape: tuple[int, ...]) -> Cut:
        """Cut nothing off."""
        return cls.of_shard(shape, 0, 1)

    @classmethod
    def of_shard(cls, shape: tuple[int, ...], shard: int, shards: int, dim: int = 0) -> Cut:
        """Cut as `torch.chunk` does: equal slices rounded up, the last ones shorter or empty."""
        size = shape[dim] if shape else 0
        each = -(-size // shards)
        start = min(each * shard, size)
        return cls(dim, start, min(start + each, size), shape)

    @property
    def own_shape(self) -> tuple[int, ...]:
        """Return the shape of the slice."""
        if self.dim == FLAT:
            return (self.stop - self.start,)
        return (*self.shape[: self.dim], self.stop - self.start, *self.shape[self.dim + 1 :]) if self.shape else ()

    @property
    def numel(self) -> int:
        """Count the entries of the slice."""
        return torch.Size(self.own_shape).numel()

    def of(self, whole: Tensor) -> Tensor:
        """Return a view of this slice of the whole, which must be contiguous if the slice is flat."""
        if self.dim == FLAT:
            return whole.view(-1)[self.start : self.stop]
        return whole.narrow(self.dim, self.start, self.stop - self.start) if whole.dim() else whole


def put_together(parts: Iterable[tuple[Cut, Tensor]]) -> Tensor:
    """Put a tensor together from its slices, in their shape or flat; what no slice covers is zero."""
    parts = list(parts)
    first, part = parts[0]
    whole = torch.zeros(first.shape, dtype=part.dtype)
    for cut, part in parts:
        cut.of(whole).copy_(part.view(cut.own_shape))
    return whole


@dataclass(frozen=True)
class ModelShard:
    """Tell which slices of a model's trained parameters a rank holds, in the order of its flat vector."""

    number: int
    count: int
    whole: ParameterLayout  # of the whole model
    cuts: tuple[Cut, ...]

    @property
    def kind(self) -> str:
        """Name the layout: rows, as FSDP2 cuts them, or flat slices, as ZeRO does."""
        return "flat slices" if any(cut.dim == FLAT for cut in self.cuts) else "rows"
