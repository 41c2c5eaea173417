"""A few examples of a Dataset, to find out before a run what batches look like and whether a model takes them."""

from __future__ import annotations

from functools import cached_property
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from flare_dist.data.reader import Key, Reader
from flare_dist.tasks.batch import Blank, pair
from flare_dist.tasks.task import Shape, Task

_TRIES = 100  # examples that are tried to find a few that can be read


class Few:
    """Read the first examples of a Dataset that can be read, one in its middle and its last one."""

    def __init__(self, reader: Reader) -> None:
        """Raise ValueError if none can be read, or the batch of two of them cannot be made."""
        self._reader = reader
        self.items = reader.items
        n = len(reader.items)
        if not n:
            raise ValueError(f"{reader.items.where}: there are no examples")
        readable = list(islice(filter(self._reads, range(min(n, _TRIES))), 2))
        if not readable:
            raise ValueError(f"{reader.items.where}: none of the first {min(n, _TRIES)} examples can be read")
        others = [number for number in (n // 2, n - 1) if number not in readable and self._reads(number)]
        self.numbers = readable + others

    def _reads(self, number: int) -> bool:
        return self.batch([number], may_fail=True) is not None

    def batch(self, numbers: list[int], may_fail: bool = False) -> Any:
        """Make a batch of some examples; ValueError if that fails."""
        read = self._reader[Key(0, numbers)]
        if read.problem or (read.batch is None and not may_fail):
            raise ValueError(read.problem or f"examples {numbers} could be read, and cannot be read again")
        return read.batch

    def __call__(self, examples: int) -> Any:
        """Make a batch of so many examples; if there are not as many, of the same one several times."""
        return self.batch([self.numbers[place % len(self.numbers)] for place in range(examples)])

    def blank(self, task: Task) -> Blank:
        """Make an input of zeros to try a model on, [1, ...]; or give batches, if only the loss makes outputs.

        These are the batches of a task without criterion, and inputs that are not one tensor of one shape.
        """
        inputs = _inputs(self(1))
        return self if task.criterion is None or inputs is None or self.shape is None else torch.zeros_like(inputs)

    @cached_property
    def shape(self) -> Shape | None:
        """Return the shape of an input; None if inputs differ in it, or are not one tensor."""
        shapes = set()
        for numbers in (*([number] for number in self.numbers), self.numbers):
            inputs = _inputs(self.batch(numbers))
            shapes.add(None if inputs is None else tuple(inputs.shape[1:]))
        return shapes.pop() if len(shapes) == 1 else None

    @property
    def num_labels(self) -> int | None:
        """Return how many numbers the label of an example has; None if labels are classes, or cannot be told."""
        try:
            _, labels = pair(self(1))
        except ValueError:
            return None
        if not isinstance(labels, Tensor) or not labels.is_floating_point():
            return None
        return labels.shape[1] if labels.dim() == 2 else 1


def _inputs(batch: Any) -> Tensor | None:
    """Return the inputs of a pair, or of a dict with labels, if they are one tensor of examples."""
    try:
        inputs, _ = pair(batch)
    except ValueError:
        return None
    return inputs if isinstance(inputs, Tensor) and inputs.dim() else None
