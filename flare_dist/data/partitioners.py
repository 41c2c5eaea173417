"""Partitioners: functions that give each training example its owner, so that no example can belong to two clients.

Each takes (config, train, num_classes, num_clients, rng) and returns int64 [n], the client of each example or UNUSED.
A new one is one function and one line in PARTITIONERS. lookup.py adapts the user's own.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Protocol

import numpy as np

from flare_dist.data.examples import Examples

UNUSED = -1  # owner of an example that no client gets


class PartitionerConfig(Protocol):
    """List what partitioners read of the data's configuration."""

    @property
    def name(self) -> str: ...

    @property
    def alpha(self) -> float: ...

    @property
    def examples_per_client(self) -> int | None: ...

    @property
    def shards_per_client(self) -> int: ...


Partitioner = Callable[[PartitionerConfig, Examples, int, int, np.random.Generator], np.ndarray]


def iid(
    config: PartitionerConfig, train: Examples, num_classes: int, num_clients: int, rng: np.random.Generator
) -> np.ndarray:
    """Shuffle the examples and cut them into equal parts."""
    return rng.permutation(np.repeat(np.arange(num_clients), _even(len(train), num_clients)))


def consecutive(
    config: PartitionerConfig, train: Examples, num_classes: int, num_clients: int, rng: np.random.Generator
) -> np.ndarray:
    """Give client i the i-th run of `examples_per_client` examples in data order; the rest is unused."""
    size = config.examples_per_client or len(train) // num_clients
    if size * num_clients > len(train):
        raise ValueError(
            f"clients.num: {num_clients} clients of data.examples_per_client={size} need {size * num_clients} "
            f"training examples, got {len(train)}; choose fewer clients or a smaller size"
        )
    owner = np.arange(len(train)) // size
    return np.where(owner < num_clients, owner, UNUSED)


def dirichlet(
    config: PartitionerConfig, train: Examples, num_classes: int, num_clients: int, rng: np.random.Generator
) -> np.ndarray:
    """Give all clients equal sizes, and each a class mix ~ Dir(alpha) (Acar et al., 2021, "FedDyn"; FedLab; FLASH).

    Each free place of a client asks for a class drawn from the client's mix. If a class is asked for more often than
    it has examples left, a random choice of the requests is met, and the others ask again among the classes left.
    """
    labels = train.labels.numpy()
    left = np.bincount(labels, minlength=num_classes)
    free = _even(len(labels), num_clients)
    mix = rng.dirichlet(np.full(num_classes, config.alpha), num_clients)
    counts = np.zeros((num_clients, num_classes), np.int64)
    while free.any():  # each pass places everybody or exhausts a class
        # The second term is for a client whose mix has vanished on the classes left (a small alpha underflows).
        odds = mix * (left > 0) + 1e-12 * left / left.sum()
        asked = rng.multinomial(free, odds / odds.sum(1, keepdims=True))
        for c in np.flatnonzero(asked.sum(0) > left):
            asked[:, c] = rng.multivariate_hypergeometric(asked[:, c], left[c], method="marginals")
        counts += asked
        left -= asked.sum(0)
        free -= asked.sum(1)
    return _deal(labels, counts, rng)


def dirichlet_unbalanced(
    config: PartitionerConfig, train: Examples, num_classes: int, num_clients: int, rng: np.random.Generator
) -> np.ndarray:
    """Cut each class over the clients in proportions ~ Dir(alpha) (Yurochkin et al., 2019); sizes differ too."""
    labels = train.labels.numpy()
    available = np.bincount(labels, minlength=num_classes)
    shares = rng.dirichlet(np.full(num_clients, config.alpha), num_classes)
    return _none_empty(
        _deal(labels, np.stack([_cut(n, p) for n, p in zip(available, shares)], axis=1), rng), num_clients
    )


def shards(
    config: PartitionerConfig, train: Examples, num_classes: int, num_clients: int, rng: np.random.Generator
) -> np.ndarray:
    """Sort by label, cut into equal shards and give each client a few at random (McMahan et al., 2017)."""
    pieces = num_clients * config.shards_per_client
    if pieces > len(train):
        raise ValueError(
            f"data.shards_per_client: {num_clients} clients need {pieces} shards, got {len(train)} examples; set less"
        )
    holder = rng.permutation(np.repeat(np.arange(num_clients), config.shards_per_client))
    owner = np.empty(len(train), np.int64)
    owner[np.argsort(train.labels.numpy(), kind="stable")] = np.repeat(holder, _even(len(train), pieces))
    return owner


def quantity(
    config: PartitionerConfig, train: Examples, num_classes: int, num_clients: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw sizes ~ Dir(alpha); every client has the class mix of the whole (Li et al., 2022, "NIID-Bench")."""
    sizes = _cut(len(train), rng.dirichlet(np.full(num_clients, config.alpha)))
    return _none_empty(rng.permutation(np.repeat(np.arange(num_clients), sizes)), num_clients)


def natural(
    config: PartitionerConfig, train: Examples, num_classes: int, num_clients: int, rng: np.random.Generator
) -> np.ndarray:
    """Deal the data set's own groups whole: every client gets the same number of groups, give or take one.

    With as many clients as groups client i gets group i, whatever the seed.
    """
    if train.groups is None:
        raise ValueError(
            f"data.partition: natural needs groups, got data.name={config.name} without any; choose another, or give "
            "Part(..., groups=...)"
        )
    names, group = np.unique(train.groups.numpy(), return_inverse=True)
    if num_clients > len(names):
        raise ValueError(f"clients.num: must be at most {len(names)}, the number of natural groups, got {num_clients}")
    if num_clients == len(names):
        return group
    return rng.permutation(np.arange(len(names)) % num_clients)[group]


def _even(total: int, parts: int) -> np.ndarray:
    """Divide `total` into `parts` sizes that differ by at most one, the larger ones first."""
    return total // parts + (np.arange(parts) < total % parts)


def _cut(total: int, shares: np.ndarray) -> np.ndarray:
    """Cut `total` into whole numbers in proportion to `shares`, which add up to 1."""
    edges = np.rint(np.cumsum(shares) * total).astype(np.int64)
    edges[-1] = total
    return np.diff(edges, prepend=0)


def _deal(labels: np.ndarray, counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw owners such that client i has counts[i, c] examples of class c; `counts` uses up every class."""
    owner = np.full(len(labels), UNUSED)
    for c in range(counts.shape[1]):
        owner[labels == c] = rng.permutation(np.repeat(np.arange(len(counts)), counts[:, c]))
    return owner


def _none_empty(owner: np.ndarray, num_clients: int) -> np.ndarray:
    """Give each client that has nothing the first example of the client that has most, the first of equals."""
    sizes = np.bincount(owner, minlength=num_clients)
    order = np.argsort(owner, kind="stable")
    # The place in `order` at which the examples that a client still has begin.
    first = np.cumsum(sizes) - sizes
    richest = [(-int(size), client) for client, size in enumerate(sizes) if size > 1]
    heapq.heapify(richest)
    for client in np.flatnonzero(sizes == 0):
        size, giver = richest[0]
        owner[order[first[giver]]] = client
        first[giver] += 1
        heapq.heapreplace(richest, (size + 1, giver))
    return owner


PARTITIONERS: dict[str, Partitioner] = {
    "iid": iid,
    "consecutive": consecutive,
    "dirichlet": dirichlet,
    "dirichlet_unbalanced": dirichlet_unbalanced,
    "shards": shards,
    "quantity": quantity,
    "natural": natural,
}
