"""Batches of a Dataset, read through torch's DataLoader while the run goes on: the lazy twin of `BatchSource`.

What an example's transforms draw follows from the pass and the example's index, so batches are the same with any number
of workers, on any number of ranks and after a resume.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from flare_dist.data.batches import Draw, batch_sizes
from flare_dist.data.reader import ExampleError, Key, Read, Reader
from flare_dist.seeding import derive_seed
from flare_dist.tasks.batch import moved


class LazyBatches:
    """Make the batches of a Dataset, and keep count of the examples that cannot be read."""

    def __init__(self, reader: Reader, device: torch.device | str, workers: int, seed: int) -> None:
        """Open a DataLoader with so many worker processes, which start with the first pass and stay.

        `seed` decides what is drawn if no generator is given.
        """
        self.device = torch.device(device)
        self.on_batch: Callable[[], None] | None = None
        self.skipped = 0  # reads that failed since `take_skipped` was called
        self._reader = reader
        self._seed = derive_seed(seed, "examples in order")
        self._asked = _Asked()
        self._named: set[int] = set()  # examples that cannot be read, each named once
        self._unnamed: list[str] = []
        self._said = ""  # of the last one
        self._loader: DataLoader[Read] = DataLoader(
            reader,  # type: ignore[arg-type]  # has no length, which DataLoader does not need
            batch_size=None,
            sampler=self._asked,
            collate_fn=_as_it_is,  # type: ignore[arg-type]  # is given what the reader returns
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # DataLoader draws from it, and would draw from the model's
        )

    def __len__(self) -> int:
        return len(self._reader.items)

    def batches(
        self, indices: Tensor | None, batch_size: int, generator: torch.Generator | None, smallest: int = 1
    ) -> Iterator[Any]:
        """Yield one epoch over `indices` (int64; None = all), shuffled as `BatchSource.batches` shuffles.

        The last batch may be smaller; if it has fewer than `smallest` examples, it joins the one before it. A batch of
        which fewer can be read is left out.
        """
        yield from self.passes([(indices, generator)], batch_size, smallest)

    def passes(
        self, draws: Iterable[Draw], batch_size: int, smallest: int = 1, steps: int | None = None
    ) -> Iterator[Any]:
        """Yield the batches of several epochs, no more than `steps`; workers read on from one epoch to the next."""
        keys = (key for draw in draws for key in self._keys(draw, batch_size, smallest))
        for batch in self._read(islice(keys, steps)):
            if batch is not None:
                yield batch

    def each(self, draws: Iterable[Draw]) -> Iterator[Any]:
        """Yield one batch of all indices for each draw; raises ExampleError if none of its examples can be read."""
        keys = (key for draw in draws for key in self._keys(draw, len(self), 1))
        for batch in self._read(keys):
            if batch is None:
                raise ExampleError(f"data.on_error: skip leaves nothing of a batch; {self._said}")
            yield batch

    def take_skipped(self) -> tuple[int, list[str]]:
        """Return how many reads failed since the last call, and what is said of examples that are new among them."""
        found = (self.skipped, self._unnamed)
        self.skipped = 0
        self._unnamed = []
        return found

    def _keys(self, draw: Draw, batch_size: int, smallest: int) -> Iterator[Key]:
        """Yield the keys of an epoch's batches. The order is the one that resident tensors would have."""
        indices, generator = draw
        order = torch.arange(len(self)) if indices is None else indices
        seed = self._seed
        if generator is not None:
            # From a copy, so that orders do not depend on it.
            seed = int(torch.randint(2**62, (), generator=generator.clone_state()))
            order = order[torch.randperm(len(order), generator=generator)]
        start = 0
        for size in batch_sizes(len(order), batch_size, smallest):
            fewest = 1 if generator is None else smallest  # an evaluation measures whatever can be read
            yield Key(seed, order[start : start + size].tolist(), fewest)
            start += size

    def _read(self, keys: Iterable[Key]) -> Iterator[Any]:
        """Yield the batch of each key on the device, or None if too few of its examples can be read."""
        self._asked.keys = keys
        for read in self._loader:
            if self.on_batch:
                self.on_batch()
            if read.problem:
                raise ExampleError(read.problem)
            self.skipped += len(read.skipped)
            for number, said in read.skipped:
                self._said = said
                if number not in self._named:
                    self._named.add(number)
                    self._unnamed.append(said)
            yield read.batch if self.device.type == "cpu" or read.batch is None else moved(read.batch, self.device)


class _Asked:
    """Hand the loader the keys of the next pass; it keeps one sampler for all of them, and with it its workers."""

    def __init__(self) -> None:
        self.keys: Iterable[Key] = ()

    def __iter__(self) -> Iterator[Key]:
        return iter(self.keys)


def _as_it_is(read: Read) -> Read:
    return read
