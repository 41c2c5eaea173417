"""Sources of examples: each data set by name, as tensors in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from flare_dist.data.cache import locked
from flare_dist.data.examples import Examples, check_examples
from flare_dist.data.images import load_folder
from flare_dist.data.pixels import ImageSpec
from flare_dist.data.source import Source
from flare_dist.data.synthetic import SyntheticConfig, draw_images
from flare_dist.data.text import CHARACTERS, load_texts
from flare_dist.data.texts import TextConfig, text_source
from flare_dist.errors import reason, refusal
from flare_dist.named import Options
from flare_dist.tasks.builtin import CLASSIFICATION
from flare_dist.vocabulary import Vocabulary

_DAMAGED = (ArithmeticError, AssertionError, EOFError, LookupError, OSError, RuntimeError, TypeError, ValueError)


class SourceConfig(TextConfig, Protocol):
    """List what sources read of the data's configuration, that of texts among them."""

    @property
    def name(self) -> str: ...

    @property
    def options(self) -> Options: ...

    @property
    def layout(self) -> str: ...

    @property
    def images(self) -> ImageSpec: ...

    @property
    def download(self) -> bool: ...

    @property
    def synthetic(self) -> SyntheticConfig: ...


def digits(config: SourceConfig, seed: int) -> Source:
    """Load scikit-learn's bundled 8x8 digits, values 0 to 16; every fifth image of each class is a test image."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    inputs = torch.from_numpy(bunch.images.astype(np.uint8))[:, None]
    place_in_class = (labels[:, None] == torch.arange(10)).cumsum(0).gather(1, labels[:, None])[:, 0]
    held = place_in_class % 5 == 0
    train, test = (Examples(inputs[part], labels[part]) for part in (~held, held))
    return Source(train, test, classes=tuple("0123456789"), white=16.0)


def synthetic(config: SourceConfig, seed: int) -> Source:
    """Draw a data set of the sizes in `data.synthetic`; see `synthetic.py`."""
    sizes = config.synthetic
    return Source(*draw_images(sizes, seed), classes=sizes.classes)


def image_folder(config: SourceConfig, seed: int) -> Source:
    """Load the tree of images at `data.root`; see `images.py`."""
    train, test, names = load_folder(Path(config.root), config.images, config.layout)
    return Source(train, test, classes=names)


def shakespeare(config: SourceConfig, seed: int) -> Source:
    """Load texts of many speakers at `data.root`; see `text.py`."""
    texts = load_texts(Path(config.root), config.sequence_length)
    characters = tuple(CHARACTERS)
    return Source(*texts, classes=characters, task="next_token", vocabulary=Vocabulary(len(characters)))


def torchvision_source(
    config: SourceConfig,
    seed: int,
    *,
    reader: str,
    folder: str,
    files: Sequence[str],
    num_classes: int,
    transposed: bool = False,
    **options: Any,
) -> Source:
    """Load a data set by the class `reader` of torchvision.datasets from `files` in `folder` of `data.root`.

    Raises ValueError that names the missing files. They are fetched only if `data.download` is set, by one process
    while the others wait.
    """
    from torchvision import datasets

    root = Path(config.root).absolute()
    read = partial(getattr(datasets, reader), str(root), **options)
    if config.download:
        with locked(root):
            try:
                read(train=True, download=True)
            except (OSError, RuntimeError) as error:  # urllib's and torchvision's own
                raise ValueError(f"data.download: could not fetch {config.name} into {root} ({error})") from error
    missing = [file for file in files if not (root / folder / file).is_file()]
    if missing:
        hint = "" if config.download else "; data.download=true fetches them"
        raise ValueError(f"data.root: {config.name} needs {', '.join(missing)} in {root / folder}{hint}")
    try:
        readers = [read(train=train) for train in (True, False)]
        train, test = (_in_memory(reader, transposed) for reader in readers)
        for examples in (train, test):
            check_examples(examples, num_classes, CLASSIFICATION)
    except _DAMAGED as error:
        raise refusal("data.root", root / folder, f"{config.name} is damaged, delete it ({reason(error)})") from error
    return Source(train, test, classes=getattr(readers[0], "classes", num_classes))


def _in_memory(dataset: Any, transposed: bool) -> Examples:
    data = torch.as_tensor(dataset.data)
    inputs = data[:, None] if data.dim() == 3 else data.permute(0, 3, 1, 2)
    inputs = inputs.transpose(2, 3) if transposed else inputs
    return Examples(inputs.contiguous(), torch.as_tensor(dataset.targets, dtype=torch.int64))


def _idx(train: str, test: str) -> list[str]:
    return [f"{part}-{kind}-ubyte" for part in (train, test) for kind in ("images-idx3", "labels-idx1")]


_mnist = partial(torchvision_source, files=_idx("train", "t10k"), num_classes=10)
# EMNIST's files hold every image transposed.
_emnist = partial(torchvision_source, reader="EMNIST", folder="EMNIST/raw", transposed=True)

# A source with a parameter `task` is given task.name, auto included.
SOURCES: dict[str, Callable[..., Source]] = {
    "digits": digits,
    "mnist": partial(_mnist, reader="MNIST", folder="MNIST/raw"),
    "fashion_mnist": partial(_mnist, reader="FashionMNIST", folder="FashionMNIST/raw"),
    "emnist": partial(
        _emnist, split="balanced", files=_idx("emnist-balanced-train", "emnist-balanced-test"), num_classes=47
    ),
    "emnist_byclass": partial(
        _emnist, split="byclass", files=_idx("emnist-byclass-train", "emnist-byclass-test"), num_classes=62
    ),
    "cifar10": partial(
        torchvision_source,
        reader="CIFAR10",
        folder="cifar-10-batches-py",
        files=[*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"],
        num_classes=10,
    ),
    "cifar100": partial(
        torchvision_source,
        reader="CIFAR100",
        folder="cifar-100-python",
        files=["train", "test", "meta"],
        num_classes=100,
    ),
    "image_folder": image_folder,
    "shakespeare": shakespeare,
    "synthetic": synthetic,
    "text": text_source,
}
