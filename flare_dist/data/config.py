"""Settings of the data: which data set, and how it is shared out among the clients."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from flare_dist.data.augmentation import AUGMENTATIONS
from flare_dist.data.normalization import NORMALIZATIONS
from flare_dist.data.partitioners import PARTITIONERS
from flare_dist.data.sources import SOURCES
from flare_dist.data.synthetic import SyntheticConfig
from flare_dist.errors import printable

# A run's config.yaml could not be read again; files within the folder may have any name.
_UNPRINTABLE = "the name has bytes that are not UTF-8 or control characters; give a link to it with another name"


@dataclass(frozen=True)
class DataConfig:
    """Choose a data set, and how it is shared out among the clients.

    Args:
        name: digits, mnist, fashion_mnist, emnist (balanced), emnist_byclass, cifar10, cifar100, image_folder,
            shakespeare (or any other texts of many speakers) or synthetic.
        root: Folder that holds the data. image_folder expects train/<class>/*.jpg and test/<class>/*.jpg in it (val/
            stands in if test/ is missing or has none of the classes), and takes natural groups from lines
            "train/<class>/<file>,<group>" in groups.csv. shakespeare expects train/*.json and test/*.json as LEAF or
            TensorFlow Federated write them.
        image_range: The value that is white in grey images of more than 8 bits, e.g. 4095 for 12 bits in 16; null = the
            most that the file can hold, 65535. Needed for images of 32 bits or of floats. Larger values are refused.
        sequence_length: Characters in an example of text.
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
    image_range: float | None = None  # None = what the file can hold
    sequence_length: int = 100
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
        _require(self.root.isprintable(), "data.root", _UNPRINTABLE, printable(self.root))
        _require_one_of("data.partition", self.partition, PARTITIONERS)
        _require_one_of("data.normalize", self.normalize, NORMALIZATIONS)
        _require_one_of("data.augment", self.augment, AUGMENTATIONS)
        _require(0 < self.alpha < math.inf, "data.alpha", "must be positive", self.alpha)
        size = self.examples_per_client
        _require(size is None or size >= 1, "data.examples_per_client", "must be at least 1", size)
        white = self.image_range
        _require(white is None or 0 < white < math.inf, "data.image_range", "must be positive and finite", white)
        _require(self.sequence_length >= 1, "data.sequence_length", "must be at least 1", self.sequence_length)
        _require(self.shards_per_client >= 1, "data.shards_per_client", "must be at least 1", self.shards_per_client)
        _require(0 <= self.validation < 1, "data.validation", "must be in [0, 1)", self.validation)


def _require(holds: bool, key: str, what: str, value: object) -> None:
    if not holds:
        raise ValueError(f"{key}: {what}, got {value}")


def _require_one_of(key: str, value: str, choices: Iterable[str]) -> None:
    _require(value in choices, key, f"must be one of {', '.join(choices)}", value)
