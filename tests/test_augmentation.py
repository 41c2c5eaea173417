"""Augmentation against a slow reference, image by image."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flare_dist.data.augmentation import AUGMENTATIONS
from flare_dist.data.batches import BatchSource
from flare_dist.data.examples import Examples
from tests.helpers.batches import draws, epoch, normalised, pixel_source


def drawn(augment: str, count: int, generator: torch.Generator) -> Tensor:
    draw = AUGMENTATIONS[augment]
    assert draw is not None
    return draw(count, generator)


@pytest.mark.parametrize("augment", ["crop", "flip", "crop_flip"])
def test_augmentation_equals_the_slow_reference(augment: str) -> None:
    data = pixel_source(augment)
    inputs, labels = epoch(data, draws())
    rng = draws()
    torch.randperm(53, generator=rng)
    moves = drawn(augment, 53, rng)
    for got, image, (top, left, mirrored) in zip(inputs, normalised(data, labels), moves.tolist()):
        padded = torch.zeros(3, 18, 15)
        padded[:, 4:14, 4:11] = image
        cropped = padded[:, top : top + 10, left : left + 7]
        assert torch.equal(got, cropped.flip(-1) if mirrored else cropped)


def test_draws_cover_every_move() -> None:
    moves = drawn("crop_flip", 2000, draws())
    assert [column.unique().tolist() for column in moves.unbind(1)] == [list(range(9)), list(range(9)), [0, 1]]


@pytest.mark.parametrize("augment", ["flip", "crop"])
def test_each_augmentation_keeps_to_itself(augment: str) -> None:
    moves = drawn(augment, 500, draws())
    assert (moves[:, :2] == 4).all() if augment == "flip" else (moves[:, 2] == 0).all()


@pytest.mark.parametrize("augment", ["crop", "flip", "crop_flip"])
def test_augmentation_moves_the_labels_of_pixels_with_the_image(augment: str) -> None:
    """Each pixel's value is its label plus one, so that 0 comes from outside only."""
    labels = torch.arange(4 * 64).view(4, 8, 8)
    examples = Examples((labels[:, None] + 1).float(), labels)
    source = BatchSource(examples, torch.zeros(1), torch.ones(1), "cpu", augment, outside=-100)
    ((inputs, found),) = source.batches(None, 4, torch.Generator().manual_seed(3))
    expected = torch.where(inputs[:, 0] == 0, -100, inputs[:, 0].long() - 1)
    assert torch.equal(found, expected)
    assert not torch.equal(found.sort(0).values, labels)
