"""Batches made on the training device: the data set lives there as raw pixels and is normalised and augmented there.

A client's epoch may be sixty batches of ten images, for which Python's cost per batch rules. So thousands of examples
are gathered, normalised and augmented at once and handed out as views.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import chain, islice
from typing import Protocol

import torch
from torch import Tensor

from flare_dist.data.augmentation import AUGMENTATIONS, move
from flare_dist.data.examples import Examples
from flare_dist.devices import check_room, moved_unwaited
from flare_dist.seeding import generator as seeded_generator
from flare_dist.tasks.task import Batch

Draw = tuple[Tensor | None, torch.Generator | None]  # an epoch: its examples, and what shuffles them

_CHUNK = 2**26  # bytes of float32 inputs prepared at once


class Batches(Protocol):
    """List what local training and evaluation need of batches: `BatchSource`'s, or `LazyBatches` of a Dataset."""

    device: torch.device
    on_batch: Callable[[], None] | None  # called before each batch that is handed out

    def __len__(self) -> int: ...

    def batches(
        self, indices: Tensor | None, batch_size: int, generator: torch.Generator | None, smallest: int = 1
    ) -> Iterator[Batch]:
        """Yield one epoch over `indices`; None = all."""

    def passes(
        self, draws: Iterable[Draw], batch_size: int, smallest: int = 1, steps: int | None = None
    ) -> Iterator[Batch]:
        """Yield the batches of several epochs, no more than `steps`."""

    def each(self, draws: Iterable[Draw]) -> Iterator[Batch]:
        """Yield one batch of all indices for each draw."""


class BatchSource:
    """Make the batches of a data set that resides on the training device."""

    def __init__(
        self,
        examples: Examples,
        mean: Tensor,
        std: Tensor,
        device: torch.device | str,
        augment: str = "none",
        outside: int | None = None,
    ) -> None:
        """Copy `examples` to `device`; `mean` and `std` are float32 [C] in raw pixel units.

        `augment` is a key of AUGMENTATIONS. With `outside` each pixel has a label, which moves with it; pixels from
        outside of the image are labelled so.
        """
        self.device = check_room(examples.inputs.nbytes + examples.labels.nbytes, torch.device(device))
        self.outside = outside
        self.is_text = examples.is_text
        self.as_is = examples.as_is
        self.inputs = examples.inputs.to(device)
        self.labels = examples.labels.to(device)
        self.mean = mean.to(device).view(-1, 1, 1)
        self.std = std.to(device).view(-1, 1, 1)
        self.moves = AUGMENTATIONS[augment]
        self.on_batch: Callable[[], None] | None = None
        self._sizes = cache(batch_sizes)  # clients with as many examples have the same batches

    def __len__(self) -> int:
        return len(self.labels)

    def batches(
        self, indices: Tensor | None, batch_size: int, generator: torch.Generator | None, smallest: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one epoch over `indices` (int64 on the CPU; None = all): inputs float32 [b, C, H, W], labels [b, ...].

        Inputs of text are int64 [b, T]; those of a user's Dataset have any shape.
        With a CPU `generator` examples are shuffled and augmented, all draws made on it at the start of the epoch.
        Without one they come in order, as they are. The last batch may be smaller; if it has fewer than `smallest`
        examples, it joins the one before it. Batches are views of one chunk: use them, do not keep many.
        """
        order = torch.arange(len(self)) if indices is None else indices
        moves = None
        if generator is not None:
            order, moves = self.draw(order, generator)
        order = moved_unwaited(order, self.device)
        moves = None if moves is None else moved_unwaited(moves, self.device)
        sizes = self._sizes(len(order), batch_size, smallest)
        count = max(1, _CHUNK // (4 * self.inputs[0].numel() * batch_size))  # batches of a chunk
        for first in range(0, len(sizes), count):
            own = sizes[first : first + count]
            start = first * batch_size
            chunk = order[start : start + sum(own)]
            inputs, labels = self.prepare(chunk, None if moves is None else moves[start : start + sum(own)])
            for batch in zip(inputs.split(own), labels.split(own)):
                if self.on_batch:
                    self.on_batch()
                yield batch

    def passes(
        self, draws: Iterable[Draw], batch_size: int, smallest: int = 1, steps: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of several epochs, no more than `steps`; each is drawn when it begins."""
        epochs = (self.batches(indices, batch_size, generator, smallest) for indices, generator in draws)
        return islice(chain.from_iterable(epochs), steps)

    def each(self, draws: Iterable[Draw]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one batch of all indices for each draw."""
        return self.passes(draws, len(self))

    def draw(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Draw an epoch: `indices` shuffled, and how the input of each is moved (int64 [n, 3]; None = not)."""
        shuffled = indices[torch.randperm(len(indices), generator=generator)]
        return shuffled, self.moves(len(indices), generator) if self.moves else None

    def prepare(self, chosen: Tensor, moves: Tensor | None) -> tuple[Tensor, Tensor]:
        """Normalise and move the examples at `chosen` (int64 [b] on the device): inputs [b, C, H, W] and labels."""
        if self.on_batch:
            self.on_batch()
        inputs = self.inputs.index_select(0, chosen)
        labels = self.labels[chosen]
        if self.is_text:
            return inputs.long(), labels
        if self.as_is:
            return inputs.float(), labels
        inputs = inputs.float().sub_(self.mean).div_(self.std)  # subtracting from integers takes four times as long
        if moves is None:
            return inputs, labels
        if self.outside is not None:
            labels = move(labels[:, None], moves, self.outside)[:, 0]
        return move(inputs, moves), labels


def first_batch(examples: Examples, mean: Tensor, std: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Make one batch on the CPU of the first `size` examples, or of all if there are fewer, as they are."""
    few = examples.subset(torch.arange(min(size, len(examples))))
    return next(BatchSource(few, mean, std, "cpu").batches(None, size, None))


def count_batches(num_examples: int, batch_size: int, smallest: int = 1) -> int:
    """Count the batches of a pass; fewer than `smallest` examples at its end join the batch before them."""
    whole, rest = divmod(num_examples, batch_size)
    return whole + (rest >= smallest or 0 < rest == num_examples)


def batch_sizes(num_examples: int, batch_size: int, smallest: int = 1) -> list[int]:
    """List the sizes of the batches that `count_batches` counts, in order."""
    full = max(0, count_batches(num_examples, batch_size, smallest) - 1)
    return [batch_size] * full + [num_examples - full * batch_size] * (num_examples > 0)


def piece_sizes(num_examples: int, pieces: int, smallest: int = 1) -> list[int]:
    """Cut a batch into at most so many pieces: the sizes of torch.chunk, unless one would be below `smallest`."""
    return batch_sizes(num_examples, max(math.ceil(num_examples / pieces), smallest), smallest)


class SharedEpochs:
    """Draw epochs that all ranks go through together, each with its own part of every batch.

    A batch is `size` times `batch_size` examples; what is left at the end of an epoch is not used.
    """

    def __init__(self, num_examples: int, batch_size: int, size: int, seed: int) -> None:
        """Raise ValueError that names clients.batch_size if there are too few examples for one batch."""
        check_enough(num_examples, batch_size, size)
        self.num_examples = num_examples
        self.batch_size = batch_size
        self.size = size
        self.seed = seed
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)

    def indices(self, step: int, rank: int) -> Tensor:
        """Return the examples of one rank in one step, counted from 0 over all epochs: int64 [batch_size]."""
        epoch, place = divmod(step, self.num_examples // (self.batch_size * self.size))
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = torch.randperm(self.num_examples, generator=seeded_generator(self.seed, "shuffle", epoch))
        start = (place * self.size + rank) * self.batch_size
        return self._order[start : start + self.batch_size]


def check_enough(num_examples: int, batch_size: int, size: int) -> None:
    """Raise ValueError that names clients.batch_size if `size` ranks cannot have a batch each."""
    if batch_size * size > num_examples:
        raise ValueError(
            f"clients.batch_size: {size} ranks with {batch_size} examples each need {batch_size * size}, "
            f"got {num_examples}; choose a smaller batch, or fewer ranks"
        )
