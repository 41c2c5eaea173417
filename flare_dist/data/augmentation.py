"""Augmentation of images: each function draws how the examples of an epoch are moved; `move` does it on the device.

A new one is one function and one line in AUGMENTATIONS, as long as it can be said by a crop and a mirror.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

_PADDING = 4  # pixels on each side; the crop of He et al., 2016, for CIFAR


def move(inputs: Tensor, moves: Tensor, outside: int = 0) -> Tensor:
    """Crop each of [b, C, H, W] at its own place in itself, padded by `outside`, then mirror it if told.

    `moves` is int64 [b, 3]: top and left of the crop in 0 to 8 (4 = unmoved), and 1 to mirror. Zero is the mean colour
    of normalised inputs.
    """
    b, c, h, w = inputs.shape
    padded = F.pad(inputs, (_PADDING,) * 4, value=outside)
    top, left, mirrored = moves[:, :, None].unbind(1)
    column = torch.arange(w, device=inputs.device)
    rows = top + torch.arange(h, device=inputs.device)
    columns = left + torch.where(mirrored.bool(), column.flip(0), column)
    place = rows[:, :, None] * padded.shape[3] + columns[:, None, :]
    return padded.view(b, c, -1).gather(2, place.view(b, 1, h * w).expand(b, c, h * w)).view(b, c, h, w)


def crop(count: int, generator: torch.Generator) -> Tensor:
    """Draw a random crop of the image padded by four pixels."""
    moves = torch.zeros(count, 3, dtype=torch.int64)
    moves[:, :2] = torch.randint(2 * _PADDING + 1, (count, 2), generator=generator)
    return moves


def flip(count: int, generator: torch.Generator) -> Tensor:
    """Exchange left and right in a random half."""
    moves = torch.full((count, 3), _PADDING)
    moves[:, 2] = torch.randint(2, (count,), generator=generator)
    return moves


def crop_flip(count: int, generator: torch.Generator) -> Tensor:
    """Draw a crop, then a flip."""
    moves = crop(count, generator)
    moves[:, 2] = flip(count, generator)[:, 2]
    return moves


AUGMENTATIONS: dict[str, Callable[[int, torch.Generator], Tensor] | None] = {
    "none": None,
    "crop": crop,
    "flip": flip,
    "crop_flip": crop_flip,
}
