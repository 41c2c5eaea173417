"""Open the parts of a user's data set: tensors in memory as they are, every other Dataset to be read lazily.

Chosen here and nowhere else: `Examples` are resident and take every fast path, `Items` are read example by example.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, Subset, TensorDataset

from flare_dist.data.collate import single, stack_examples
from flare_dist.data.examples import Examples
from flare_dist.data.items import Items
from flare_dist.data.known import as_integers, known_labels
from flare_dist.data.source import Collate, Name, Part, Source
from flare_dist.errors import printable, reason_in_code


def open_parts(source: Source, where: str) -> dict[str, Examples | Items]:
    """Open the parts of a Source by name: train, test and, if there is one, validation."""
    given = {"train": source.train, "test": source.test, "validation": source.validation}
    there = {name: part for name, part in given.items() if part is not None or name != "validation"}
    return {name: open_part(part, f"{where}: {name}", source.collate) for name, part in there.items()}


def open_part(given: Any, where: str, collate: Collate | None = None) -> Examples | Items:
    """Open one part of a Source; `where` begins the errors, e.g. "data: train"."""
    if isinstance(given, Examples):
        return given
    part = given if isinstance(given, Part) else Part(given)
    data = part.data
    check_map_style(data, where)
    n = _length(data, where)
    _check_indices(data, where)
    groups, names = _groups(part.groups, n, where)
    strata = _classes(part.labels, n, where)
    tensors = _tensors(data)
    if tensors is None or collate is not None:
        return Items(
            data, where, collate or stack_examples, groups, names, known_labels(data) if strata is None else strata
        )
    inputs, labels = tensors
    return Examples(
        single(inputs),
        single(_as_classes(labels)),
        groups,
        # uint8 is pixels, if it is not a table of codes.
        is_text=not inputs.is_floating_point() and (inputs.dtype != torch.uint8 or inputs.dim() == 2),
        group_names=names,
        strata=strata,
        as_is=True,
    )


def check_map_style(data: Any, where: str) -> None:
    """Raise ValueError that says why if `data` has no examples by index."""
    if isinstance(data, Mapping):
        keys = ", ".join(printable(str(key)) for key in data)
        raise ValueError(f"{where}: must be one Dataset, got {type(data).__name__} with {keys}; give one of them")
    is_readable = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    if isinstance(data, str) or not (hasattr(data, "__iter__") or hasattr(data, "__getitem__")):
        raise ValueError(
            f"{where}: must be a Dataset, got {type(data).__name__}; give one with __len__ and __getitem__, as "
            "Source(train=images, test=others)"
        )
    if isinstance(data, IterableDataset) or not is_readable:
        raise ValueError(
            f"{where}: clients, shuffling and resuming need examples by index, got {type(data).__name__}, which is a "
            "stream; give a Dataset with __len__ and __getitem__ (Hugging Face: without streaming=True)"
        )


def _length(data: Any, where: str) -> int:
    """Return the number of examples; ValueError with the reason if the Dataset does not give one."""
    try:
        return len(data)
    except Exception as error:  # whatever somebody's code may raise
        raise ValueError(f"{where}: len() of {type(data).__name__} fails: {reason_in_code(error)}") from error


def _check_indices(data: Any, where: str) -> None:
    """Raise ValueError if a Subset chooses examples that there are not."""
    if not isinstance(data, Subset):
        return
    _check_indices(data.dataset, where)
    n = _length(data.dataset, where)
    indices = np.asarray(data.indices)  # at once, for there may be millions
    wrong = indices[(indices < -n) | (indices >= n)]
    if len(wrong):
        raise ValueError(f"{where}: a Subset of {n} examples must have indices 0 to {n - 1}, got {int(wrong[0])}")


def _tensors(data: Any) -> tuple[Tensor, Tensor] | None:
    """Return (inputs, labels) of a TensorDataset, or of a Subset of one; None of everything else."""
    if isinstance(data, TensorDataset) and len(data.tensors) == 2:
        inputs, labels = data.tensors
        return inputs, labels
    if isinstance(data, Subset) and (whole := _tensors(data.dataset)) is not None:
        chosen = torch.as_tensor(data.indices, dtype=torch.int64)
        return whole[0][chosen], whole[1][chosen]
    return None


def _as_classes(labels: Tensor) -> Tensor:
    """Convert integers of any type to the int64 of classes."""
    return labels if labels.is_floating_point() else labels.long()


def _groups(names: Sequence[Name] | Tensor | None, n: int, where: str) -> tuple[Tensor | None, tuple[Name, ...]]:
    """Number the groups in sorted order of their names: (int64 [n], the names)."""
    if names is None:
        return None, ()
    given: Any = names.tolist() if isinstance(names, Tensor | np.ndarray) else names
    if not isinstance(given, Iterable):
        raise ValueError(f"{where}: groups must be one for each of {n} examples, got {type(names).__name__}")
    # list(array) holds NumPy's scalars, list(tensor) tensors without axes.
    listed: list[Any] = [name.item() if isinstance(name, np.generic | Tensor) else name for name in given]
    _check_length("groups", len(listed), n, where)
    kinds = set(map(type, listed))
    if len(kinds) > 1 or any(not issubclass(kind, str | int) or kind is bool for kind in kinds):
        shown = " and ".join(sorted(kind.__name__ for kind in kinds))
        raise ValueError(f"{where}: groups must all be strings or all be integers, got {shown}")
    ordered = sorted(set(listed))
    number = {name: place for place, name in enumerate(ordered)}
    return torch.from_numpy(np.fromiter((number[name] for name in listed), np.int64, n)), tuple(ordered)


def _classes(labels: Sequence[int] | Tensor | None, n: int, where: str) -> Tensor | None:
    """Check the labels of a Part: integers [n] of classes, in whatever type they come, for millions take memory."""
    if labels is None:
        return None
    found = as_integers(labels)
    if found is None or found.dim() != 1:
        raise ValueError(
            f"{where}: labels must be one class for each example, integers [{n}], got {_described(labels)}"
        )
    _check_length("labels", len(found), n, where)
    if n and int(found.min()) < 0:
        raise ValueError(f"{where}: labels must be classes from 0, got {int(found.min())}")
    return found


def _described(labels: Any) -> str:
    """Name what was given as labels: the type and the shape of numbers, the types of all else in it."""
    if isinstance(labels, str) or not isinstance(labels, Iterable):
        return type(labels).__name__
    if isinstance(labels, Tensor | np.ndarray) and labels.dtype != object:
        return f"{str(labels.dtype).removeprefix('torch.')} {list(labels.shape)}"
    return " and ".join(sorted({type(label).__name__ for label in labels}))


def _check_length(field: str, length: int, n: int, where: str) -> None:
    if length != n:
        raise ValueError(f"{where}: {field} must be one for each of {n} examples, got {length}")
