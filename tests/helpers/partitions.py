"""Labelled examples, and how a partitioner shares them out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flare_dist.data.config import DataConfig
from flare_dist.data.examples import Examples
from flare_dist.data.partition import partition
from flare_dist.tasks.builtin import CLASSIFICATION

CLASSES = 10


def examples(n: int = 1003, groups: int | None = 40) -> Examples:
    rng = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (n,), generator=rng)
    writers = None if groups is None else torch.randperm(n, generator=rng) % groups
    return Examples(torch.zeros(n, 1, 1, 1), labels, writers)


def split(name: str, clients: int = 13, n: int = 1003, seed: int = 0, **values: Any) -> list[Tensor]:
    return list(partition(DataConfig(partition=name, **values), examples(n), CLASSIFICATION, CLASSES, clients, seed))
