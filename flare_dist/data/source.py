"""The data set of a run, as a user gives it: parts to train on and to test on, each a Dataset with names of its groups.

    Source(train=Part(images, groups=sites), test=Part(others), classes=["cat", "dog"])

`torch.utils.data.TensorDataset(inputs, labels)` is copied to the device once, and batches are made there. Every other
map-style Dataset (torchvision's, `datasets.Dataset`, one's own) is read example by example through torch's DataLoader.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from flare_dist.data.examples import Examples
from flare_dist.vocabulary import Vocabulary

Collate = Callable[[list[Any]], Any]  # the examples of a batch -> the batch
Name = str | int  # of a group


class Readable(Protocol):
    """A map-style Dataset: its length, and an example for each index from 0."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class Part:
    """One part of a data set, and what is known of its examples without reading them.

    Args:
        data: A map-style Dataset of n examples.
        groups: The natural client (hospital, writer, device, …) of each example, by name: n strings or integers.
        labels: The class of each example, n integers from 0, by which partitions such as dirichlet divide. None = those
            of `data`, if they are known without reading it: a TensorDataset's, the `targets` of torchvision's, the
            column "labels" or "label" of a `datasets.Dataset`.
    """

    data: Readable
    groups: Sequence[Name] | Tensor | None = None
    labels: Sequence[int] | Tensor | None = None


@dataclass(frozen=True)
class Source:
    """A data set: what is trained on, what is tested on, and the names of its classes.

    A plain Dataset is a `Part` of which neither groups nor labels are known.

    Args:
        train: The examples that are divided among the clients.
        test: The examples on which models are measured.
        validation: Examples for tuning; None = what `data.validation` holds out of train, if anything.
        classes: The names of the classes, or how many there are; of regression, how many numbers the model gives.
            None = those that train names, or as many as its labels have, if these are known.
        collate: Makes a batch of a list of examples. The default stacks tensors, arrays, numbers and PIL images (as
            float32 in [0, 1]) and goes through dicts by key and through tuples by place. With one of your own even a
            TensorDataset is read example by example.
        task: The task that task.name=auto stands for.
        white: Of resident images, the largest pixel value.
        vocabulary: Of texts, how many tokens there are, and which of them is padding; for the builder of a model.
    """

    train: Part | Readable | Examples
    test: Part | Readable | Examples
    validation: Part | Readable | Examples | None = None
    classes: Sequence[str] | int | None = None
    collate: Collate | None = field(default=None, kw_only=True)
    task: str = field(default="classification", kw_only=True)
    white: float = field(default=255.0, kw_only=True)
    vocabulary: Vocabulary | None = field(default=None, kw_only=True)
