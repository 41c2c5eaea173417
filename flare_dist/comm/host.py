"""The ranks of one host, on which a client lives: each holds its shard of every vector.

With one rank its collectives return their input. What moves inside a host is not counted: it is a machine, or a group
of GPUs with a fast link.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flare_dist.comm.collectives import start_gather, start_reduce

CPU = torch.device("cpu")


class Host:
    """The ranks of a host and their collectives; `shard` is this rank's number among them."""

    def __init__(self, shard: int = 0, shards: int = 1, group: Any = None, wire: torch.device = CPU) -> None:
        self.shard = shard
        self.shards = shards
        self.group = group
        self._wire_device = wire

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum `tensor` over the shards in place, with the same bits on each of them."""
        if self.shards == 1:
            return tensor
        moved = tensor.to(self._wire_device)
        start_reduce(moved, self.group).wait()
        return tensor if moved is tensor else tensor.copy_(moved)

    def sums(self, numbers: list[int]) -> list[int]:
        """Add up whole numbers over the shards."""
        if self.shards == 1:
            return numbers
        return [int(total) for total in self.sum_(torch.tensor(numbers, dtype=torch.int64)).tolist()]

    def all_true(self, condition: bool) -> bool:
        """Tell if `condition` holds on every shard."""
        return self.sums([int(condition)]) == [self.shards]

    def lengths(self, own: int) -> list[int]:
        """Return the numbers of all shards, of which this one's is `own`."""
        numbers = [0] * self.shards
        numbers[self.shard] = own
        return self.sums(numbers)

    def gather(self, vector: Tensor, lengths: list[int] | None = None) -> Tensor:
        """Return the vectors of all shards one after another, of whatever lengths, on the device of this one's."""
        if self.shards == 1:
            return vector
        lengths = lengths or self.lengths(vector.numel())
        padded = vector.new_zeros(max(lengths))
        padded[: vector.numel()] = vector
        gathered, work = start_gather(padded.to(self._wire_device), self.group)
        work.wait()
        rows = gathered.to(vector.device).view(self.shards, -1)
        return torch.cat([row[:length] for row, length in zip(rows, lengths)])
