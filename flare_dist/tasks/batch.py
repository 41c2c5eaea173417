"""Batches of any form: (inputs, labels) of the built-in tasks, or tensors in dicts, tuples and lists as collated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

LABELS = ("labels", "label")  # the keys of labels in a dict

# An input of zeros to try a model on, [1, ...]; or, if inputs are not one tensor of one shape, examples -> a batch.
Blank = Tensor | Callable[[int], Any]


def pair(batch: Any) -> tuple[Any, Any]:
    """Divide a batch into (inputs, labels): a batch of two, or a dict with labels.

    What a dict holds beside its labels is the input; a single entry is taken by itself. Raises ValueError for others.
    """
    if isinstance(batch, tuple | list) and len(batch) == 2:
        inputs, labels = batch
        return inputs, labels
    if isinstance(batch, Mapping):
        key = next((key for key in LABELS if key in batch), None)
        others = {name: value for name, value in batch.items() if name != key}
        if key is not None and others:
            return next(iter(others.values())) if len(others) == 1 else others, batch[key]
    raise ValueError(
        f"task.name: this task takes (inputs, labels), or a dict with labels, got {describe(batch)}; give the Source a "
        "collate that makes them, or write a Task whose loss takes such batches"
    )


def scores_of(outputs: Any) -> Any:
    """Return the logits of what models of Hugging Face give, a dict, in float32; other outputs as they are.

    Their scores of tokens, [b, T, classes], become [b, classes, T], as torch.nn.functional.cross_entropy takes them.
    """
    if isinstance(outputs, Tensor):
        return outputs
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    if not isinstance(logits, Tensor):
        return outputs
    scores = logits.float()
    return scores.transpose(1, 2) if scores.dim() == 3 else scores


def labels_of(batch: Any) -> Tensor | None:
    """Return the labels of a pair or a dict; None if there are none that are one tensor of examples."""
    found: Any = None
    if isinstance(batch, tuple | list) and len(batch) == 2:
        found = batch[1]
    elif isinstance(batch, Mapping):
        found = next((batch[key] for key in LABELS if key in batch), None)
    return found if isinstance(found, Tensor) and found.dim() else None


def tensors_of(batch: Any) -> list[Tensor]:
    """List the tensors of a batch, in order."""
    found: list[Tensor] = []
    mapped(found.append, batch)
    return found


def mapped(function: Callable[[Tensor], Any], batch: Any) -> Any:
    """Apply `function` to each tensor of a batch; everything that is neither tensor nor container stays."""
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, Mapping):
        return {key: mapped(function, value) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(mapped(function, value) for value in batch))
    if isinstance(batch, tuple | list):
        return type(batch)(mapped(function, value) for value in batch)
    return batch


def cast(batch: Any, dtype: torch.dtype) -> Any:
    """Convert the floating-point tensors of a batch or of a model's outputs."""
    return mapped(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor, batch)


def moved(batch: Any, device: torch.device) -> Any:
    """Copy a batch to `device`; objects with a method `to`, such as a tokenizer's, move themselves."""
    if hasattr(batch, "to"):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, tuple | list) and any(hasattr(part, "to") for part in batch):
        parts = [moved(part, device) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    return mapped(lambda tensor: tensor.to(device, non_blocking=True), batch)


def count_examples(batch: Any) -> int:
    """Count the examples of a batch, along the first axis of its tensors; ValueError if they differ in it."""
    sizes = {tensor.shape[0] if tensor.dim() else None for tensor in tensors_of(batch)}
    if len(sizes) == 1 and (size := sizes.pop()) is not None:
        return size
    raise ValueError(
        f"task.name: the loss must be (sum, count) if a batch does not show its examples, got one number for "
        f"{describe(batch)}; count in the task what the loss is a mean of"
    )


def split(batch: Any, sizes: Sequence[int]) -> list[Any]:
    """Cut a batch into pieces of so many examples each; ValueError if it does not consist of tensors of examples."""
    if isinstance(batch, Tensor) and batch.dim() and len(batch) == sum(sizes):
        return list(batch.split(list(sizes)))
    if isinstance(batch, Mapping):
        columns = {key: split(value, sizes) for key, value in batch.items()}
        return [{key: column[place] for key, column in columns.items()} for place in range(len(sizes))]
    if isinstance(batch, tuple | list) and tensors_of(batch):
        rows = zip(*(split(value, sizes) for value in batch), strict=True)
        return [type(batch)(*row) if hasattr(batch, "_fields") else type(batch)(row) for row in rows]
    if isinstance(batch, list | tuple) and len(batch) == sum(sizes):
        ends = torch.tensor(sizes).cumsum(0).tolist()
        return [batch[end - size : end] for end, size in zip(ends, sizes)]
    raise ValueError(
        "engine.gradient_accumulation_steps: must be 1 for batches that are not tensors of one example a row, got "
        f"{describe(batch)}; set 1, and a smaller clients.batch_size"
    )


def describe(batch: Any) -> str:
    """Name the form of a batch for an error, as in "a dict of image, label"."""
    if isinstance(batch, Mapping):
        return f"a {type(batch).__name__} of {', '.join(map(str, batch))}"
    if isinstance(batch, tuple | list):
        return f"a {type(batch).__name__} of {len(batch)}"
    shape = f" {list(batch.shape)}" if isinstance(batch, Tensor) else ""
    return f"a {type(batch).__name__}{shape}"
