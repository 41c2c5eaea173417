"""Labelled examples in memory, and what is done with them before training: select, hold out, measure."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_CHUNK = 256  # examples converted to float64 at once; few, so that they stay in the processor's cache


@dataclass(frozen=True)
class Examples:
    """n labelled images, or n sequences of characters, each labelled with the one that follows it."""

    inputs: Tensor  # images [n, C, H, W], uint8 or float32, in raw pixel units; text uint8 [n, T]
    labels: Tensor  # int64 [n]; of text int64 [n, T]
    groups: Tensor | None = None  # int64 [n], the natural client (writer, device, …) of each example

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def is_text(self) -> bool:
        return self.inputs.dim() == 2


def subset(examples: Examples, indices: Tensor) -> Examples:
    """Copies of the examples at `indices`, int64 [m], in that order."""
    groups = None if examples.groups is None else examples.groups[indices]
    return Examples(examples.inputs[indices], examples.labels[indices], groups)


def hold_out(examples: Examples, fraction: float, rng: torch.Generator) -> tuple[Examples, Examples]:
    """(rest, held out): a random `fraction` of the examples, rounded, at least one; both keep their data order.

    Raises ValueError where nothing would be left to train on.
    """
    held = max(1, round(fraction * len(examples)))
    if held >= len(examples):
        raise ValueError(f"data.validation: {fraction} of {len(examples)} examples leaves none to train on")
    order = torch.randperm(len(examples), generator=rng)
    return subset(examples, order[held:].sort().values), subset(examples, order[:held].sort().values)


def channel_statistics(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population standard deviation of each channel of [n, C, H, W] in raw units: two float32 [C].

    Sums are in float64, hence exact for uint8 whatever the number of threads. A constant channel gets deviation 1.
    """
    total = torch.zeros(inputs.shape[1], dtype=torch.float64)
    squares = torch.zeros_like(total)
    for chunk in inputs.split(_CHUNK):
        values = chunk.double().flatten(2)
        total += values.sum(2).sum(0)
        squares += values.square_().sum(2).sum(0)
    count = inputs.numel() // inputs.shape[1]
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(0).sqrt()
    # A constant channel leaves rounding noise of the order of its mean, not an exact zero, when inputs are float.
    std = torch.where(std > 1e-6 * mean.abs(), std, torch.ones_like(std))
    return mean.float(), std.float()


def check_examples(examples: Examples, num_classes: int) -> None:
    """Raise ValueError that says what of `examples` no task here takes: types, shapes, labels beyond the classes."""
    inputs, labels, groups = examples.inputs, examples.labels, examples.groups
    dims = 2 if inputs.dim() == 2 else 4
    allowed = (torch.uint8,) if dims == 2 else (torch.uint8, torch.float32)
    if inputs.dim() != dims or inputs.dtype not in allowed:
        kinds = "images uint8 or float32 [n, C, H, W], or text uint8 [n, T]"
        raise ValueError(f"inputs must be {kinds}, got {_kind(inputs)}")
    shape = inputs.shape if examples.is_text else inputs.shape[:1]
    if labels.dtype != torch.int64 or labels.shape != shape:
        raise ValueError(f"labels must be int64 {list(shape)}, one class for each, got {_kind(labels)}")
    if groups is not None and (groups.dtype != torch.int64 or groups.shape != shape[:1]):
        raise ValueError(f"groups must be int64 {list(shape[:1])}, got {_kind(groups)}")
    if not len(labels):
        raise ValueError("there are no examples")
    least, most = (int(end) for end in labels.aminmax())
    if least < 0 or most >= num_classes:
        raise ValueError(f"labels must be classes 0 to {num_classes - 1}, got {least if least < 0 else most}")
    if inputs.is_floating_point() and not all(chunk.isfinite().all() for chunk in inputs.split(_CHUNK)):
        raise ValueError("inputs must be finite, got infinite ones or NaN")


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
