"""Make a batch of a list of examples: torch's default, and of PIL images and lists of numbers what a model takes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from torch.utils.data import default_collate

from flare_dist.tasks.batch import mapped


def stack_examples(examples: list[Any]) -> Any:
    """Stack tensors, arrays, numbers, lists of numbers and PIL images, in dicts by key and in tuples by place.

    Images become float32 [C, H, W] in [0, 1], as torchvision's ToTensor makes them, and float64 becomes float32, as
    weights are. Raises ValueError or TypeError if examples differ in form.
    """
    plain = [_plain(example) for example in examples]
    for example in plain[1:]:
        _check_form(example, plain[0])
    batch = mapped(single, default_collate(plain))
    return tuple(batch) if type(examples[0]) is tuple else batch


def _plain(value: Any) -> Any:
    """Make tensors of the PIL images in an example, and of the lists of numbers that are its values."""
    if isinstance(value, Image):
        from torchvision.transforms.functional import to_tensor  # seconds, which data without images save

        return to_tensor(value)
    if isinstance(value, Mapping):
        return {key: _stacked(own) for key, own in value.items()}
    if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        return type(value)(map(_stacked, value))
    return value


def _stacked(value: Any) -> Any:
    """Make a tensor of a list of numbers, such as input_ids; torch's default would make a list of columns."""
    first = value
    while isinstance(first, list) and first:
        first = first[0]
    if isinstance(value, list) and isinstance(first, int | float):
        with suppress(RuntimeError, TypeError, ValueError):  # of lists that differ in length, or hold something else
            return torch.tensor(value)
    return _plain(value)


def single(tensor: Tensor) -> Tensor:
    """Convert float64 to the float32 of weights."""
    return tensor.float() if tensor.dtype == torch.float64 else tensor


def _check_form(example: Any, first: Any) -> None:
    """Raise ValueError if an example has other keys or another length than the first; default_collate lets some by."""
    if isinstance(first, Mapping):
        keys = list(example) if isinstance(example, Mapping) else [type(example).__name__]
        if set(keys) != set(first):
            raise ValueError(f"it has {_listed(keys)}, not {_listed(list(first))}")
        for key, value in first.items():
            _check_form(example[key], value)
    elif isinstance(first, tuple | list):
        if type(example) is not type(first) or len(example) != len(first):
            raise ValueError(f"it is {_sized(example)}, not {_sized(first)}")
        for value, other in zip(example, first):
            _check_form(value, other)


def _listed(keys: list[Any]) -> str:
    return ", ".join(map(str, keys)) or "no keys"


def _sized(value: Any) -> str:
    return f"a {type(value).__name__}" + (f" of {len(value)}" if isinstance(value, tuple | list) else "")
