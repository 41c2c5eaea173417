"""A Dataset of images that draws in each example, from all three generators that everybody shares, and a run of it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flare_dist import Part, Source
from flare_dist.clients.config import ClientsConfig
from flare_dist.compression.config import CompressionConfig
from flare_dist.config.config import CheckpointConfig, Config
from flare_dist.data.config import DataConfig
from flare_dist.engines.config import EngineConfig
from flare_dist.models.config import ModelConfig

SHAPE = (1, 6, 6)

CLASSES = 4


class Jittered:
    """Images around one pattern for each class; reading one draws, as random crops and flips do."""

    def __init__(self, examples: int = 64, broken: tuple[int, ...] = (), draws: bool = True) -> None:
        own = torch.Generator().manual_seed(examples)
        self.labels = torch.arange(examples) % CLASSES
        patterns = torch.randn(CLASSES, *SHAPE, generator=torch.Generator().manual_seed(0))
        self.images = patterns[self.labels] + 0.3 * torch.randn(examples, *SHAPE, generator=own)
        self.broken = broken
        self.draws = draws

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Any:
        if index in self.broken:
            raise OSError(f"image {index} is truncated")
        image = self.images[index]
        if self.draws:
            image = image + 0.1 * torch.rand(()) + 0.1 * float(np.random.rand()) + 0.1 * random.random()
        return image, int(self.labels[index])


class AsDict(Jittered):
    """The same examples as dicts."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, label = super().__getitem__(index)
        return {"image": image, "label": label}


def source(kind: type[Jittered] = Jittered, groups: bool = False, **settings: Any) -> Source:
    train = kind(**settings)
    names = [f"site {number % 5}" for number in range(len(train))] if groups else None
    return Source(Part(train, groups=names, labels=train.labels), kind(24, **settings), classes=["a", "b", "c", "d"])


def linear(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, num_classes))


def config(directory: Path | str = "", **data: Any) -> Config:
    return Config(
        rounds=3,
        output_dir=str(directory) or "runs/none",
        checkpoint=CheckpointConfig(every=1),
        data=DataConfig(**{"partition": "dirichlet", "normalize": "none"} | data),
        model=ModelConfig(name="tests.helpers.lazy:linear"),
        clients=ClientsConfig(num=4, per_round=3, batch_size=5, lr=0.05, local_epochs=2),
        compression=CompressionConfig(density=0.1),
        engine=EngineConfig(device="cpu", threads=1),
    )


def same(one: Any, other: Any) -> bool:
    """Whether two batches of nested tensors are bitwise the same."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return len(one) == len(other) and all(map(same, one, other))
