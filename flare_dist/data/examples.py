"""Labelled examples in memory, and the steps before training: select, hold out, measure, check."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from flare_dist.errors import reason_in_code
from flare_dist.named import WrongResultError
from flare_dist.tasks.builtin import describe_tensor
from flare_dist.tasks.task import Shape, Task

TOKENS = (torch.uint8, torch.int16, torch.int32, torch.int64)

_CHUNK = 256  # examples converted to float64 at once; few, so that they stay in the processor's cache


@dataclass(frozen=True)
class Examples:
    """Hold n labelled images, n sequences of tokens or n tensors of numbers; the task decides the form of labels."""

    inputs: Tensor  # images [n, C, H, W], uint8 or float32, in raw pixel units; tokens [n, T]; numbers [n, ...]
    labels: Tensor  # [n, ...]
    groups: Tensor | None = None  # int64 [n], the natural client (writer, device, …) of each example
    is_text: bool = False  # whether inputs are tokens, of any integer type
    group_names: tuple[str | int, ...] = ()  # of the groups 0, 1, …; () = they have none
    strata: Tensor | None = None  # integers [n], the classes by which partitions divide, if these are not the labels
    as_is: bool = False  # whether inputs are those of a user's Dataset: neither normalised nor augmented

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor) -> Examples:
        """Copy the examples at `indices`, int64 [m], in that order."""
        return dataclasses.replace(
            self,
            inputs=self.inputs[indices],
            labels=self.labels[indices],
            groups=None if self.groups is None else self.groups[indices],
            strata=None if self.strata is None else self.strata[indices],
        )


class Divisible(Protocol):
    """List what is needed of examples to hold some of them out."""

    def __len__(self) -> int: ...

    def subset(self, indices: Tensor) -> Any: ...


E = TypeVar("E", bound=Divisible)


def hold_out(examples: E, fraction: float, rng: torch.Generator) -> tuple[E, E]:
    """Split into (rest, held out): a random `fraction`, rounded, at least one example; both keep their data order.

    Raises ValueError if nothing would be left to train on.
    """
    held = max(1, round(fraction * len(examples)))
    if held >= len(examples):
        raise ValueError(
            f"data.validation: leaves none of {len(examples)} examples to train on, got {fraction}; hold out less"
        )
    order = torch.randperm(len(examples), generator=rng)
    return examples.subset(order[held:].sort().values), examples.subset(order[:held].sort().values)


def channel_statistics(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Compute mean and population deviation of each channel of [n, C, H, W] in raw units: two float32 [C].

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


def check_labels(task: Task, labels: Tensor, shape: Shape, num_classes: int) -> None:
    """Raise ValueError if the task cannot learn from `labels`; WrongResultError if its own check fails at it."""
    try:
        task.check_labels(labels, shape, num_classes)
    except ValueError:
        raise
    except Exception as error:  # whatever somebody's code may raise
        raise WrongResultError(f"task.name: check_labels fails: {reason_in_code(error)}") from error


def check_examples(examples: Examples, num_classes: int, task: Task) -> None:
    """Raise ValueError if the task cannot learn from `examples`, for their types, shapes or values."""
    inputs = examples.inputs
    labels = examples.labels
    groups = examples.groups
    dims, allowed = (2, TOKENS) if examples.is_text else (4, (torch.uint8, torch.float32))
    if examples.as_is:
        dims = max(1, inputs.dim())
    if inputs.dim() != dims or inputs.dtype not in allowed:
        kinds = "tokens [n, T] of an integer type" if examples.is_text else "images uint8 or float32 [n, C, H, W]"
        if examples.as_is:
            kinds = "integers, or numbers uint8 or float32, [n, ...]"
        raise ValueError(f"inputs must be {kinds}, got {describe_tensor(inputs)}")
    if not len(inputs):
        raise ValueError("there are no examples")
    check_labels(task, labels, tuple(inputs.shape), num_classes)
    if labels.shape[:1] != inputs.shape[:1]:
        raise ValueError(f"labels must be one for each of {len(inputs)} examples, got {describe_tensor(labels)}")
    if groups is not None and (groups.dtype != torch.int64 or groups.shape != inputs.shape[:1]):
        raise ValueError(f"groups must be int64 {list(inputs.shape[:1])}, got {describe_tensor(groups)}")
    if inputs.is_floating_point() and not all(chunk.isfinite().all() for chunk in inputs.split(_CHUNK)):
        raise ValueError("inputs must be finite, got infinite ones or NaN")
