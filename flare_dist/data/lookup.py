"""Find data sets and partitions by name, ours and the user's, whose options are bound and whose results are checked."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from flare_dist.data.examples import Examples
from flare_dist.data.partitioners import PARTITIONERS, UNUSED, Partitioner, PartitionerConfig
from flare_dist.data.source import Source
from flare_dist.data.sources import SOURCES, SourceConfig
from flare_dist.named import Options, bind, call, expect, find, is_own, name_of
from flare_dist.signatures import accepted
from flare_dist.tasks.config import AUTO

NAME = "data.name"
PARTITION = "data.partition"
EXAMPLE = "flare_dist.Source(train=TensorDataset(inputs, labels), test=TensorDataset(test_inputs, test_labels))"


def find_source(name: Any, options: Options) -> Callable[..., Source]:
    """Find the function (config, seed) -> Source of a data set, ours or the user's with its options bound.

    Raises ValueError that names data.name or one of data.options.
    """
    found = find(NAME, name, SOURCES)
    if is_own(name, SOURCES):
        return bind(NAME, name, found, options, ["config", "seed"], reserved=["task"])
    bind(NAME, name, lambda config, seed: found, options, ["config", "seed"])  # ours take none
    return found


def read_source(config: SourceConfig, seed: int, task: str = AUTO) -> Source:
    """Read the data set of `config` for a task; ValueError that names data.name if the user's returns no source."""
    source = find_source(config.name, config.options)
    read = partial(source, **accepted(source, task=task))
    if not is_own(config.name, SOURCES):
        return read(config, seed)
    made: Source = expect(NAME, config.name, call(NAME, config.name, read, config, seed), Source, EXAMPLE)
    return made


def find_partitioner(name: Any, options: Options) -> Partitioner:
    """Find a partitioner by its name, or adapt the user's own; ValueError that names data.partition or an option.

    The user's takes (labels, groups, num_clients, rng, **options), arrays of NumPy; labels and groups are None if there
    are none, or none known.
    """
    found = find(PARTITION, name, PARTITIONERS)
    if not is_own(name, PARTITIONERS):
        bind(PARTITION, name, found, options, ["config", "train", "num_classes", "num_clients", "rng"])
        return found
    users = bind(PARTITION, name, found, options, ["labels", "groups", "num_clients", "rng"])

    def own(
        config: PartitionerConfig, train: Examples, num_classes: int, num_clients: int, rng: np.random.Generator
    ) -> np.ndarray:
        groups = None if train.groups is None else train.groups.numpy().copy()  # the caller may change it
        labels = train.labels.numpy().copy() if train.labels.numel() else None

        def divide() -> np.ndarray:
            return np.asarray(users(labels, groups, num_clients, rng))

        try:
            owner = call(PARTITION, name, divide)
        except ValueError as error:
            hint = "; its labels are None, for they are not known: give Part(..., labels=...)" if labels is None else ""
            raise ValueError(f"{error}{hint}") from error
        _check_owner(name_of(name), owner, len(train), num_clients)
        return owner.astype(np.int64)

    return own


def _check_owner(name: str, owner: np.ndarray, examples: int, num_clients: int) -> None:
    """Raise ValueError that names data.partition unless each example has an owner, or none, and each client some."""
    wanted = f"{PARTITION}: {name} must return the client of each example, a whole number from -1 to {num_clients - 1}"
    example = "for example rng.permutation(np.arange(len(labels)) % num_clients)"
    if owner.shape != (examples,) or owner.dtype.kind not in "iu":
        raise ValueError(f"{wanted}, in an array of shape ({examples},), got {owner.dtype} {owner.shape}; {example}")
    if owner.min() < UNUSED or owner.max() >= num_clients:
        wrong = int(owner.min()) if owner.min() < UNUSED else int(owner.max())
        raise ValueError(f"{wanted}, got {wrong}; {example}")
    without = np.flatnonzero(np.bincount(owner[owner != UNUSED], minlength=num_clients) == 0)
    if len(without):
        raise ValueError(
            f"{PARTITION}: {name} must give each of {num_clients} clients an example, got none for client "
            f"{without[0]}; choose fewer clients (clients.num), or mend it"
        )
