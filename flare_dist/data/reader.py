"""Read the examples of a batch, in this process or a worker's: seeded one by one, collated, checked, errors by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from flare_dist.data.items import Items
from flare_dist.errors import ReportedError, reason_in_code
from flare_dist.seeding import CPU, derive_seed, draws_kept, seed_draws
from flare_dist.tasks.batch import labels_of

ON_ERROR = ("stop", "skip")


class ExampleError(ReportedError):
    """Raised if an example cannot be read, or a batch not be made; the message is for the user."""


class Key(NamedTuple):
    """A batch to be read: the seed of its pass over the data, and the numbers of its examples."""

    seed: int
    numbers: list[int]
    smallest: int = 1  # fewer readable examples than this are no batch


class Read(NamedTuple):
    """A batch that has been read; one without a batch had too few examples that can be."""

    batch: Any
    skipped: tuple[tuple[int, str], ...] = ()  # the number of each example that cannot be read, and what is said of it
    problem: str = ""  # the error with which the run ends


@dataclass(frozen=True)
class Reader:
    """Make the batch of each key. DataLoader takes it for a Dataset whose examples are batches."""

    items: Items
    on_error: str = "stop"
    num_classes: int | None = None  # labels outside of it are refused; None = labels are no classes
    ignored: int | None = None  # a label that is no class and is left out

    def __getitem__(self, key: Key) -> Read:
        """Read a batch. What is drawn follows from the key alone, and the caller's generators are left as they are."""
        with draws_kept(), one_thread():
            try:
                return self._read(key)
            except ExampleError as error:  # a worker's traceback would hide the message
                return Read(None, problem=str(error))

    def _read(self, key: Key) -> Read:
        examples = []
        numbers = []
        skipped = []
        for number in key.numbers:
            index = self.items.index(number)
            seed_draws(derive_seed(key.seed, "example", client=index), CPU)
            try:
                examples.append(self.items.data[index])
                numbers.append(number)
            except Exception as error:  # whatever somebody's code may raise
                said = f"{self.items.where}: {self.items.name(number)} cannot be read: {reason_in_code(error)}"
                if self.on_error == "stop":
                    raise ExampleError(f"{said}; mend it, or set data.on_error=skip") from error
                skipped.append((number, said))
        if len(examples) < min(key.smallest, len(key.numbers)):
            return Read(None, tuple(skipped))
        seed_draws(derive_seed(key.seed, "collate", client=self.items.index(key.numbers[0])), CPU)
        batch = self._collated(examples, numbers)
        self._check_labels(batch, examples, numbers)
        return Read(batch, tuple(skipped))

    def _collated(self, examples: list[Any], numbers: list[int]) -> Any:
        try:
            batch = self.items.collate(examples)
        except Exception as error:  # whatever somebody's code may raise
            raise ExampleError(f"{self.items.where}: {self._why_not(examples, numbers, error)}") from error
        if batch is None:
            raise ExampleError(f"{self.items.where}: the collate must return a batch, got None; let it end with return")
        return batch

    def _why_not(self, examples: list[Any], numbers: list[int], error: Exception) -> str:
        """Find the example with which the collate fails, alone or beside the first one, and say why."""
        names = [self.items.name(number) for number in numbers]
        for place, example in enumerate(examples):
            for few, beside in (([example], ""), ([examples[0], example], f" with {names[0]}")):
                try:
                    self.items.collate(few)
                except Exception as own:  # whatever somebody's code may raise
                    return f"{names[place]} cannot be collated{beside}: {reason_in_code(own)}"
        return f"{names[0]} to {names[-1]} cannot be collated: {reason_in_code(error)}"

    def _check_labels(self, batch: Any, examples: list[Any], numbers: list[int]) -> None:
        """Raise ExampleError if a label of the batch is no class: a GPU would only say that an assertion failed."""
        labels = labels_of(batch)
        if self.num_classes is None or labels is None or not labels.numel():
            return
        if labels.is_floating_point():
            if labels.dim() == 1:  # else shares of the classes, which a collate that mixes examples makes
                self._refuse_fractions(examples, numbers, self.num_classes)
            return
        is_class = (labels >= 0) & (labels < self.num_classes)
        if self.ignored is not None:
            is_class |= labels == self.ignored
        if not is_class.all():
            place = tuple((~is_class).nonzero()[0].tolist())
            name = self.items.name(numbers[place[0]]) if len(labels) == len(numbers) else "a batch"
            wrong = int(labels[place])
            raise ExampleError(
                f"{self.items.where}: {name}: labels must be classes 0 to {self.num_classes - 1}, got {wrong}"
            )

    def _refuse_fractions(self, examples: list[Any], numbers: list[int], num_classes: int) -> None:
        """Raise ExampleError that names the first example whose label is a fraction; one makes fractions of all."""
        alone = [labels_of(self.items.collate([example])) for example in examples]
        place = next((i for i, own in enumerate(alone) if own is not None and own.is_floating_point()), 0)
        label = alone[place]
        shown = "fractions" if label is None else str(label.tolist()[0])
        raise ExampleError(
            f"{self.items.where}: {self.items.name(numbers[place])}: labels must be integers, classes 0 to "
            f"{num_classes - 1}, got {shown}"
        )


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread, as in DataLoader's workers: sums of transforms have the same bits there."""
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
