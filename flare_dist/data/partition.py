"""Partition of the training examples among the clients, by a partitioner that is chosen by name."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from flare_dist.compatibility import BY_CLASS, EXCLUSIONS, WITHOUT_CLASSES
from flare_dist.data.config import DataConfig
from flare_dist.data.examples import Examples
from flare_dist.data.items import Items
from flare_dist.data.lookup import find_partitioner
from flare_dist.data.partitioners import UNUSED
from flare_dist.exclusion import refuse
from flare_dist.seeding import derive_seed
from flare_dist.tasks.task import Task


class Partition:
    """Hold the indices of each client's examples, int64, by client: views of one tensor.

    A hundred thousand tensors would take as long to make and as much memory as a small run.
    """

    def __init__(self, order: Tensor, sizes: Iterable[int], held_out: Partition | None = None) -> None:
        """Take `order`, the examples of client 0, then those of client 1 and so on, and how many each client has.

        `held_out` has the examples of each client that it does not train on, if there are any.
        """
        self.order = order
        self.held_out = held_out
        self.sizes = array("q", sizes)
        self._ends = array("q", itertools.accumulate(self.sizes))

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, client: int) -> Tensor:
        end = self._ends[client]
        return self.order[end - self.sizes[client] : end]

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.order.split(self.sizes.tolist()))


def partition(
    config: DataConfig, train: Examples | Items, task: Task, num_classes: int | None, num_clients: int, seed: int
) -> Partition:
    """Share `train` out among the clients: one int64 index tensor for each, disjoint, none empty, in data order.

    Raises ValueError that names `clients.num` if there are not enough examples or groups, and `data.partition` if it
    goes by classes and the task has none for each example.
    """
    if not 1 <= num_clients <= len(train):
        raise ValueError(f"clients.num: must be in [1, {len(train)}] (one example each), got {num_clients}")
    strata = strata_of(train, task)
    class_of = task.class_of if strata is None else "example"
    refuse(EXCLUSIONS, data=config, class_of=class_of, num_clients=num_clients)
    if isinstance(train, Items) and strata is None and config.partition in BY_CLASS:
        raise ValueError(
            f"data.partition: this partition divides by the class of each example, got {config.partition} and "
            f"{train.where} without labels; give Part(..., labels=...), or choose from {', '.join(WITHOUT_CLASSES)}"
        )
    rng = np.random.default_rng(derive_seed(seed, "partition"))
    divide = find_partitioner(config.partition, config.partition_options)
    owner = divide(config, _divided(train, strata), num_classes or 0, num_clients, rng)
    owner = owner.astype(np.int32)  # for millions of examples, half the memory
    unused = np.count_nonzero(owner == UNUSED)
    sizes = np.bincount(owner[owner != UNUSED] if unused else owner, minlength=num_clients)
    assert sizes.min() > 0, "a partitioner left a client without examples"
    order = np.argsort(owner, kind="stable")[unused:]
    return Partition(torch.from_numpy(order), sizes.tolist())


def hold_out_of_each(parts: Partition, fraction: float, seed: int) -> Partition:
    """Hold out some of each client's examples: those that it trains on, and `held_out`, both in data order.

    A random `fraction`, rounded, of each client; at least one example is held out if the client keeps one, and none
    otherwise.
    """
    rng = np.random.default_rng(derive_seed(seed, "client_holdout"))
    sizes = np.array(parts.sizes)
    client = np.repeat(np.arange(len(sizes)), sizes)
    shuffled = np.lexsort((rng.random(len(client)), client))
    rank = np.arange(len(client)) - np.repeat(sizes.cumsum() - sizes, sizes)  # of an example among its client's
    held = np.minimum(np.maximum(np.rint(fraction * sizes).astype(np.int64), 1), sizes - 1)
    is_held = np.empty(len(client), bool)
    is_held[shuffled] = rank < held[client]
    chosen = torch.from_numpy(is_held)
    held_out = Partition(parts.order[chosen], held.tolist())
    return Partition(parts.order[~chosen], (sizes - held).tolist(), held_out)


def _divided(train: Examples | Items, strata: Tensor | None) -> Examples:
    """Return examples of which partitioners see labels and groups alone: classes, labels of any form, or [n, 0]."""
    labels = torch.empty(len(train), 0) if strata is None else strata
    if strata is None and isinstance(train, Examples):
        labels = train.labels
    return Examples(labels, labels, train.groups)


def strata_of(train: Examples | Items, task: Task) -> Tensor | None:
    """Return the class of each example by which it may be dealt out, int64 [n]; None if it has none, or none known."""
    if train.strata is not None:
        return train.strata
    return train.labels if isinstance(train, Examples) and task.class_of == "example" else None


def counted_classes(train: Examples | Items, num_classes: int | None) -> tuple[Tensor, int]:
    """Return the labels that a table of clients counts, and of how many classes they are.

    One class of all examples stands for numbers, and for labels that are not known.
    """
    labels = train.strata
    if labels is None and isinstance(train, Examples):
        labels = train.labels
    if labels is None or labels.is_floating_point():
        return torch.zeros(len(train), dtype=torch.int64), 1
    return labels, max(num_classes or 0, int(labels.max()) + 1)


def label_table(parts: Iterable[Tensor], labels: Tensor, num_classes: int) -> Tensor:
    """Count each client's labels of each class, those that are ignored left out: int64 [clients, classes]."""
    own = (labels[part].flatten() for part in parts)
    return torch.stack([torch.bincount(some[some >= 0], minlength=num_classes) for some in own])
