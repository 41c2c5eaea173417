"""The data of a run: a named source, cut into train, validation and test, and how its pixels are to be normalised."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flare_dist.data.batches import AUGMENTATIONS
from flare_dist.data.examples import Examples, channel_statistics, hold_out
from flare_dist.data.partition import PARTITIONERS
from flare_dist.data.sources import SOURCES, Source
from flare_dist.seeding import generator

__all__ = ["DataConfig", "DataSplits", "Examples", "SyntheticConfig", "load"]


@dataclass(frozen=True)
class SyntheticConfig:
    """A seeded data set of any size: noise around one pattern for each class and a fainter one for each group.

    Args:
        examples: Training examples.
        test_examples: Test examples.
        shape: Channels, height and width of an image.
        classes: Number of classes.
        groups: Number of natural groups, for partition: natural.
    """

    examples: int = 2000
    test_examples: int = 500
    shape: tuple[int, int, int] = (3, 16, 16)
    classes: int = 10
    groups: int = 20

    def __post_init__(self) -> None:
        for key in ("examples", "test_examples", "classes", "groups"):
            _require(getattr(self, key) >= 1, f"data.synthetic.{key}", "must be at least 1", getattr(self, key))
        _require(
            len(self.shape) == 3 and min(self.shape) >= 1, "data.synthetic.shape", "must be three sizes", self.shape
        )


@dataclass(frozen=True)
class DataConfig:
    """Which data set, and how it is shared out among the clients.

    Args:
        name: digits, mnist, fashion_mnist, emnist (balanced), emnist_byclass, cifar10, cifar100, image_folder or
            synthetic.
        root: Folder that holds the data. image_folder expects train/<class>/*.jpg and test/<class>/*.jpg in it, and
            takes natural groups from lines "train/<class>/<file>,<group>" in groups.csv.
        partition: iid, consecutive, dirichlet, dirichlet_unbalanced, shards, quantity or natural.
        alpha: Concentration of the Dirichlet partitions and of quantity; smaller = clients differ more.
        examples_per_client: Size of each client for consecutive; null = an equal share.
        shards_per_client: Runs of label-sorted data for each client of shards; smaller = fewer classes each.
        download: Whether missing files may be fetched.
        validation: Fraction of the training set held out for tuning, in [0, 1).
        normalize: standard (channel mean and deviation of the training set), unit (pixels in [0, 1]) or none (raw).
        augment: none, crop (4 pixels of padding), flip (left-right) or crop_flip.
        synthetic: Sizes of the synthetic data set.
    """

    name: str = "digits"
    root: str = "data"
    partition: str = "iid"
    alpha: float = 1.0  # smaller = clients differ more
    examples_per_client: int | None = None  # None = an equal share
    shards_per_client: int = 2  # smaller = fewer classes on a client
    download: bool = False
    validation: float = 0.0  # fraction held out
    normalize: str = "standard"
    augment: str = "none"
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)

    def __post_init__(self) -> None:
        _require_one_of("data.name", self.name, SOURCES)
        _require_one_of("data.partition", self.partition, PARTITIONERS)
        _require_one_of("data.normalize", self.normalize, NORMALIZATIONS)
        _require_one_of("data.augment", self.augment, AUGMENTATIONS)
        _require(0 < self.alpha < math.inf, "data.alpha", "must be positive", self.alpha)
        size = self.examples_per_client
        _require(size is None or size >= 1, "data.examples_per_client", "must be at least 1", size)
        _require(self.shards_per_client >= 1, "data.shards_per_client", "must be at least 1", self.shards_per_client)
        _require(0 <= self.validation < 1, "data.validation", "must be in [0, 1)", self.validation)


@dataclass(frozen=True)
class DataSplits:
    """What a run trains, tunes and is tested on; batches are (x - mean) / std."""

    train: Examples
    validation: Examples | None
    test: Examples
    num_classes: int
    mean: Tensor  # float32 [C], in raw pixel units
    std: Tensor  # float32 [C], in raw pixel units

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one example."""
        channels, height, width = self.train.inputs.shape[1:]
        return channels, height, width


def load(config: DataConfig, seed: int) -> DataSplits:
    """Read the data set of `config`; `seed` decides what is held out and what synthetic data look like.

    Raises ValueError that names `data.root` where files are missing or damaged.
    """
    source = SOURCES[config.name](config, seed)
    train, validation = source.train, None
    if config.validation > 0:
        train, validation = hold_out(train, config.validation, generator(seed, "validation"))
    mean, std = NORMALIZATIONS[config.normalize](train, source)
    return DataSplits(train, validation, source.test, source.num_classes, mean, std)


def standard(train: Examples, source: Source) -> tuple[Tensor, Tensor]:
    """Mean 0 and deviation 1 in each channel, over what is trained on."""
    return channel_statistics(train.inputs)


def unit(train: Examples, source: Source) -> tuple[Tensor, Tensor]:
    """Pixels in [0, 1]."""
    channels = train.inputs.shape[1]
    return torch.zeros(channels), torch.full((channels,), source.white)


def raw(train: Examples, source: Source) -> tuple[Tensor, Tensor]:
    """Pixels as they are."""
    channels = train.inputs.shape[1]
    return torch.zeros(channels), torch.ones(channels)


def _require(holds: bool, key: str, what: str, value: object) -> None:
    if not holds:
        raise ValueError(f"{key}: {what}, got {value}")


def _require_one_of(key: str, value: str, choices: Iterable[str]) -> None:
    _require(value in choices, key, f"must be one of {', '.join(choices)}", value)


NORMALIZATIONS: dict[str, Callable[[Examples, Source], tuple[Tensor, Tensor]]] = {
    "standard": standard,
    "unit": unit,
    "none": raw,
}
