"""Batches made on the training device: the data set lives there as raw pixels and is normalised and augmented there.

A client's epoch may be sixty batches of ten images, where Python's cost for each batch rules. So thousands of examples
are gathered, normalised and augmented at once and handed out as views.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from flare_dist import seeding
from flare_dist.data.examples import Examples

_CHUNK = 2**26  # bytes of float32 inputs prepared at once
_PADDING = 4  # pixels on each side; the crop of He et al., 2016, for CIFAR


class BatchSource:
    """A data set resident on the training device; batches are normalised and augmented there."""

    def __init__(
        self,
        examples: Examples,
        mean: Tensor,
        std: Tensor,
        device: torch.device | str,
        augment: str = "none",
        outside: int | None = None,
    ) -> None:
        """`mean` and `std` are float32 [C] in raw pixel units; `augment` is a key of AUGMENTATIONS.

        With `outside` each pixel has a label, which moves with it; pixels from outside of the image are labelled so.
        """
        self.outside = outside
        self.is_text = examples.is_text
        self.inputs = examples.inputs.to(device)
        self.labels = examples.labels.to(device)
        self.mean = mean.to(device).view(-1, 1, 1)
        self.std = std.to(device).view(-1, 1, 1)
        self.moves = AUGMENTATIONS[augment]

    def __len__(self) -> int:
        return len(self.labels)

    def batches(
        self, indices: Tensor | None, batch_size: int, generator: torch.Generator | None, smallest: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch over `indices` (int64 on the CPU; None = all): inputs float32 [b, C, H, W], labels [b, ...].

        Inputs of text are int64 [b, T].

        With a CPU `generator`: shuffled and augmented, all draws made on it at the start of the epoch. Without: in
        order, as they are. The last batch may be smaller; of fewer than `smallest` examples it goes with the one before
        it. Batches are views of one chunk: use them, do not keep many.
        """
        order, moves = torch.arange(len(self)) if indices is None else indices, None
        if generator is not None:
            order, moves = self.draw(order, generator)
        order = order.to(self.labels.device)
        moves = None if moves is None else moves.to(order.device)
        sizes = batch_sizes(len(order), batch_size, smallest)
        count = max(1, _CHUNK // (4 * self.inputs[0].numel() * batch_size))  # batches of a chunk
        for first in range(0, len(sizes), count):
            own = sizes[first : first + count]
            start = first * batch_size
            chunk = order[start : start + sum(own)]
            inputs, labels = self.prepare(chunk, None if moves is None else moves[start : start + sum(own)])
            yield from zip(inputs.split(own), labels.split(own))

    def draw(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """What an epoch draws: `indices` shuffled, and how the input of each is moved (int64 [n, 3]; None = not)."""
        return indices[torch.randperm(len(indices), generator=generator)], self.moves(len(indices), generator)

    def prepare(self, chosen: Tensor, moves: Tensor | None) -> tuple[Tensor, Tensor]:
        """The examples at `chosen` (int64 [b] on the device), normalised and moved: inputs [b, C, H, W] and labels."""
        inputs, labels = self.inputs.index_select(0, chosen), self.labels[chosen]
        if self.is_text:
            return inputs.long(), labels
        inputs = inputs.float().sub_(self.mean).div_(self.std)  # subtracting from integers takes four times as long
        if moves is None:
            return inputs, labels
        if self.outside is not None:
            labels = move(labels[:, None], moves, self.outside)[:, 0]
        return move(inputs, moves), labels


def count_batches(num_examples: int, batch_size: int, smallest: int = 1) -> int:
    """Batches of a pass over so many examples: fewer than `smallest` at its end go with the batch before them."""
    whole, rest = divmod(num_examples, batch_size)
    return whole + (rest >= smallest or 0 < rest == num_examples)


def batch_sizes(num_examples: int, batch_size: int, smallest: int = 1) -> list[int]:
    """The sizes of these batches, in order."""
    full = max(0, count_batches(num_examples, batch_size, smallest) - 1)
    return [batch_size] * full + [num_examples - full * batch_size] * (num_examples > 0)


def piece_sizes(num_examples: int, pieces: int, smallest: int = 1) -> list[int]:
    """The sizes of at most so many pieces of a batch: those of torch.chunk, unless one would be below `smallest`."""
    return batch_sizes(num_examples, max(math.ceil(num_examples / pieces), smallest), smallest)


class SharedEpochs:
    """Epochs that all ranks go through together, each with its own part of every batch.

    A batch is `size` times `batch_size` examples; what is left at the end of an epoch is not used.
    """

    def __init__(self, num_examples: int, batch_size: int, size: int, seed: int) -> None:
        """Raises ValueError that names clients.batch_size where there are too few examples for one batch."""
        check_enough(num_examples, batch_size, size)
        self.num_examples = num_examples
        self.batch_size = batch_size
        self.size = size
        self.seed = seed
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def indices(self, step: int, rank: int) -> Tensor:
        """The examples of one rank in one step, counted from 0 over all epochs: int64 [batch_size]."""
        epoch, place = divmod(step, self.num_examples // (self.batch_size * self.size))
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = torch.randperm(self.num_examples, generator=seeding.generator(self.seed, "shuffle", epoch))
        start = (place * self.size + rank) * self.batch_size
        return self._order[start : start + self.batch_size]


def check_enough(num_examples: int, batch_size: int, size: int) -> None:
    """Raise ValueError that names clients.batch_size where `size` ranks cannot have a batch each."""
    if batch_size * size > num_examples:
        raise ValueError(
            f"clients.batch_size: {size} ranks with {batch_size} examples each need {batch_size * size}, "
            f"there are {num_examples}"
        )


def move(inputs: Tensor, moves: Tensor, outside: int = 0) -> Tensor:
    """Crop each of [b, C, H, W] at its own place in itself, padded by `outside`, then mirror it if told.

    `moves` is int64 [b, 3]: top and left of the crop in 0 to 8 (4 = unmoved), and 1 to mirror. Zero is the mean colour
    of normalised inputs.
    """
    b, c, h, w = inputs.shape
    padded = F.pad(inputs, (_PADDING,) * 4, value=outside)
    top, left, mirrored = moves[:, :, None].unbind(1)
    column = torch.arange(w, device=inputs.device)
    rows = top + torch.arange(h, device=inputs.device)
    columns = left + torch.where(mirrored.bool(), column.flip(0), column)
    place = rows[:, :, None] * padded.shape[3] + columns[:, None, :]
    return padded.view(b, c, -1).gather(2, place.view(b, 1, h * w).expand(b, c, h * w)).view(b, c, h, w)


def stay(count: int, generator: torch.Generator) -> Tensor | None:
    """No augmentation."""
    return None


def crop(count: int, generator: torch.Generator) -> Tensor:
    """A random crop of the image padded by four pixels."""
    moves = torch.zeros(count, 3, dtype=torch.int64)
    moves[:, :2] = torch.randint(2 * _PADDING + 1, (count, 2), generator=generator)
    return moves


def flip(count: int, generator: torch.Generator) -> Tensor:
    """Left and right exchanged in a random half."""
    moves = torch.full((count, 3), _PADDING)
    moves[:, 2] = torch.randint(2, (count,), generator=generator)
    return moves


def crop_flip(count: int, generator: torch.Generator) -> Tensor:
    """Both."""
    moves = crop(count, generator)
    moves[:, 2] = flip(count, generator)[:, 2]
    return moves


AUGMENTATIONS: dict[str, Callable[[int, torch.Generator], Tensor | None]] = {
    "none": stay,
    "crop": crop,
    "flip": flip,
    "crop_flip": crop_flip,
}
