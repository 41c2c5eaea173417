"""Slices of tensors: the rows of a weight that one rank of several holds."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Cut(NamedTuple):
    """A slice of a tensor along one dimension, and the shape of the whole."""

    dim: int
    start: int
    stop: int
    shape: tuple[int, ...]

    @classmethod
    def of_shard(cls, shape: tuple[int, ...], shard: int, shards: int, dim: int = 0) -> Cut:
        """Cut as `torch.chunk` does: equal slices rounded up, the last ones shorter or empty."""
        each = -(-shape[dim] // shards)
        start = min(each * shard, shape[dim])
        return cls(dim, start, min(start + each, shape[dim]), shape)

    @property
    def own_shape(self) -> tuple[int, ...]:
        return (*self.shape[: self.dim], self.stop - self.start, *self.shape[self.dim + 1 :])

    def of(self, whole: Tensor) -> Tensor:
        """Return a view of this slice of the whole; a number for the whole weight is everybody's."""
        return whole.narrow(self.dim, self.start, self.stop - self.start) if whole.dim() else whole
