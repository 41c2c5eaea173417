"""Draw a seeded data set of images: noise around patterns, to learn from without any file."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from flare_dist.data.examples import Examples
from flare_dist.errors import check_least
from flare_dist.seeding import generator

_CHUNK = 4096  # examples drawn at once


@dataclass(frozen=True)
class SyntheticConfig:
    """Set the sizes of a seeded data set: noise around one pattern for each class and a fainter one for each group.

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
            check_least(f"data.synthetic.{key}", getattr(self, key), 1)
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(
                f"data.synthetic.shape: must be three sizes, got {self.shape}; give channels, height and width"
            )


def draw_images(sizes: SyntheticConfig, seed: int) -> tuple[Examples, Examples]:
    """Draw the training and the test examples, uint8 grey noise around one pattern for each class.

    A fainter pattern is added for each group (its "handwriting").
    """
    rng = generator(seed, "synthetic patterns")
    patterns = torch.randn(sizes.classes, *sizes.shape, generator=rng)
    styles = torch.randn(sizes.groups, *sizes.shape, generator=rng)

    def draw_part(part: str, count: int) -> Examples:
        rng = generator(seed, f"synthetic {part}")
        labels = torch.randint(sizes.classes, (count,), generator=rng)
        groups = torch.randperm(count, generator=rng) % sizes.groups
        inputs = torch.empty(count, *sizes.shape, dtype=torch.uint8)
        for start in range(0, count, _CHUNK):
            chunk = slice(start, start + _CHUNK)
            noise = torch.randn(inputs[chunk].shape, generator=rng)
            value = 128 + 24 * patterns[labels[chunk]] + 12 * styles[groups[chunk]] + 40 * noise
            inputs[chunk] = value.clamp_(0, 255).byte()
        return Examples(inputs, labels, groups)

    return draw_part("train", sizes.examples), draw_part("test", sizes.test_examples)
