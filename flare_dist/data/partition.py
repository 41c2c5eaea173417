"""Which client owns which training example.

Every partitioner returns one owner for each example, so no example can belong to two clients.
"""

from __future__ import annotations

import heapq
import itertools
from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from flare_dist.compatibility import EXCLUSIONS, OF_TEXT
from flare_dist.data.examples import Examples
from flare_dist.exclusion import refuse
from flare_dist.seeding import derive_seed

if TYPE_CHECKING:
    from flare_dist.data.config import DataConfig

UNUSED = -1  # owner of an example that no client gets


class Partition:
    """The indices of each client's examples, int64, by client: views of one tensor.

    A hundred thousand tensors would take as long to make and as much memory as a small run.
    """

    def __init__(self, order: Tensor, sizes: Iterable[int]) -> None:
        """`order` has the examples of client 0, then those of client 1 and so on; `sizes` says how many."""
        self.order = order
        self.sizes = array("q", sizes)
        self._ends = array("q", itertools.accumulate(self.sizes))

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, client: int) -> Tensor:
        end = self._ends[client]
        return self.order[end - self.sizes[client] : end]

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.order.split(self.sizes.tolist()))


def partition(config: DataConfig, train: Examples, num_classes: int, num_clients: int, seed: int) -> Partition:
    """One int64 index tensor for each client: disjoint, none empty, each in data order.

    Raises ValueError that names `clients.num` where there are not enough examples or groups.
    """
    if not 1 <= num_clients <= len(train):
        raise ValueError(f"clients.num: must be in [1, {len(train)}] (one example each), got {num_clients}")
    refuse(EXCLUSIONS, data=config, is_text=train.is_text, num_clients=num_clients)
    by_label = config.partition not in OF_TEXT
    if by_label and (train.labels.dim() > 1 or train.labels.is_floating_point()):
        raise ValueError(
            f"data.partition: {config.partition} goes by labels, of which an example has more than one class"
        )
    rng = np.random.default_rng(derive_seed(seed, "partition"))
    owner = PARTITIONERS[config.partition](config, train, num_classes, num_clients, rng)
    sizes = np.bincount(owner[owner != UNUSED], minlength=num_clients)
    assert sizes.min() > 0, "a partitioner left a client without examples"
    order = np.argsort(owner, kind="stable")[np.count_nonzero(owner == UNUSED) :]
    return Partition(torch.from_numpy(order), sizes.tolist())


def label_table(parts: Iterable[Tensor], labels: Tensor, num_classes: int) -> Tensor:
    """Count each client's labels of each class, those that are ignored left out: int64 [clients, classes]."""
    own = (labels[part].flatten() for part in parts)
    return torch.stack([torch.bincount(some[some >= 0], minlength=num_classes) for some in own])


def iid(
    config: DataConfig, train: Examples, num_classes: int, num_clients: int, rng: np.random.Generator
) -> np.ndarray:
    """Shuffled and cut into equal parts."""
    return rng.permutation(np.repeat(np.arange(num_clients), _even(len(train), num_clients)))


def consecutive(
    config: DataConfig, train: Examples, num_classes: int, num_clients: int, rng: np.random.Generator
) -> np.ndarray:
    """Client i owns the i-th run of `examples_per_client` examples in data order; the rest is unused."""
    size = config.examples_per_client or len(train) // num_clients
    if size * num_clients > len(train):
        raise ValueError(
            f"clients.num: {num_clients} clients of data.examples_per_client={size} need {size * num_clients} "
            f"training examples, there are {len(train)}"
        )
    owner = np.arange(len(train)) // size
    return np.where(owner < num_clients, owner, UNUSED)


def dirichlet(
    config: DataConfig, train: Examples, num_classes: int, num_clients: int, rng: np.random.Generator
) -> np.ndarray:
    """Equal sizes, class mix of each client ~ Dir(alpha) (Acar et al., 2021, "FedDyn"; FedLab; FLASH).

    Each free place of a client asks for a class drawn from the client's mix. Where a class is asked for more often
    than it has examples left, a random choice of the requests is met and the others ask again among the classes left.
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
    config: DataConfig, train: Examples, num_classes: int, num_clients: int, rng: np.random.Generator
) -> np.ndarray:
    """Each class is cut over the clients in proportions ~ Dir(alpha) (Yurochkin et al., 2019), so sizes differ too."""
    labels = train.labels.numpy()
    available = np.bincount(labels, minlength=num_classes)
    shares = rng.dirichlet(np.full(num_clients, config.alpha), num_classes)
    return _none_empty(
        _deal(labels, np.stack([_cut(n, p) for n, p in zip(available, shares)], axis=1), rng), num_clients
    )


def shards(
    config: DataConfig, train: Examples, num_classes: int, num_clients: int, rng: np.random.Generator
) -> np.ndarray:
    """Sorted by label and cut into equal shards, a few random ones for each client (McMahan et al., 2017)."""
    pieces = num_clients * config.shards_per_client
    if pieces > len(train):
        raise ValueError(
            f"data.shards_per_client: {num_clients} clients need {pieces} shards, there are {len(train)} examples"
        )
    holder = rng.permutation(np.repeat(np.arange(num_clients), config.shards_per_client))
    owner = np.empty(len(train), np.int64)
    owner[np.argsort(train.labels.numpy(), kind="stable")] = np.repeat(holder, _even(len(train), pieces))
    return owner


def quantity(
    config: DataConfig, train: Examples, num_classes: int, num_clients: int, rng: np.random.Generator
) -> np.ndarray:
    """Sizes ~ Dir(alpha), class mix as in the whole (Li et al., 2022, "NIID-Bench")."""
    sizes = _cut(len(train), rng.dirichlet(np.full(num_clients, config.alpha)))
    return _none_empty(rng.permutation(np.repeat(np.arange(num_clients), sizes)), num_clients)


def natural(
    config: DataConfig, train: Examples, num_classes: int, num_clients: int, rng: np.random.Generator
) -> np.ndarray:
    """The data set's own groups, dealt whole: every client gets the same number of groups, give or take one."""
    if train.groups is None:
        raise ValueError(f"data.partition: {config.name} has no natural groups")
    names, group = np.unique(train.groups.numpy(), return_inverse=True)
    if num_clients > len(names):
        raise ValueError(f"clients.num: must be at most {len(names)}, the number of natural groups, got {num_clients}")
    return rng.permutation(np.arange(len(names)) % num_clients)[group]


def _even(total: int, parts: int) -> np.ndarray:
    """`parts` sizes that add up to `total` and differ by at most one, the larger ones first."""
    return total // parts + (np.arange(parts) < total % parts)


def _cut(total: int, shares: np.ndarray) -> np.ndarray:
    """`total` in whole numbers, in proportion to `shares` (that add up to 1)."""
    edges = np.rint(np.cumsum(shares) * total).astype(np.int64)
    edges[-1] = total
    return np.diff(edges, prepend=0)


def _deal(labels: np.ndarray, counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random owners such that client i has counts[i, c] examples of class c; `counts` uses up every class."""
    owner = np.full(len(labels), UNUSED)
    for c in range(counts.shape[1]):
        owner[labels == c] = rng.permutation(np.repeat(np.arange(len(counts)), counts[:, c]))
    return owner


def _none_empty(owner: np.ndarray, num_clients: int) -> np.ndarray:
    """Each client that has nothing gets one example, the first, of the client that has most (of several the first)."""
    sizes = np.bincount(owner, minlength=num_clients)
    order = np.argsort(owner, kind="stable")
    first = np.cumsum(sizes) - sizes  # where the examples that a client still has begin in `order`
    richest = [(-int(size), client) for client, size in enumerate(sizes) if size > 1]
    heapq.heapify(richest)
    for client in np.flatnonzero(sizes == 0):
        size, giver = richest[0]
        owner[order[first[giver]]] = client
        first[giver] += 1
        heapq.heapreplace(richest, (size + 1, giver))
    return owner


PARTITIONERS: dict[str, Callable[[DataConfig, Examples, int, int, np.random.Generator], np.ndarray]] = {
    "iid": iid,
    "consecutive": consecutive,
    "dirichlet": dirichlet,
    "dirichlet_unbalanced": dirichlet_unbalanced,
    "shards": shards,
    "quantity": quantity,
    "natural": natural,
}
