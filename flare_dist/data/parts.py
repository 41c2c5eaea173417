"""Open the parts of a user's data set: tensors in memory as they are, every other Dataset to be read lazily.

Chosen here and nowhere else: `Examples` are resident and take every fast path, `Items` are read example by example.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, Subset, TensorDataset

from flare_dist.data.collate import single, stack_examples
from flare_dist.data.examples import TOKENS, Examples
from flare_dist.data.items import Items
from flare_dist.data.known import known_labels
from flare_dist.data.source import Collate, Name, Part, Readable, Source
from flare_dist.errors import printable


def open_parts(source: Source, where: str) -> dict[str, Examples | Items]:
    """Open the parts of a Source by name: train, test and, if there is one, validation."""
    given = {"train": source.train, "test": source.test, "validation": source.validation}
    return {
        name: open_part(part, f"{where}: {name}", source.collate) for name, part in given.items() if part is not None
    }


def open_part(given: Part | Readable | Examples, where: str, collate: Collate | None = None) -> Examples | Items:
    """Open one part of a Source; `where` begins the errors, e.g. "data: train"."""
    if isinstance(given, Examples):
        return given
    part = given if isinstance(given, Part) else Part(given)
    data = part.data
    check_map_style(data, where)
    groups, names = _groups(part.groups, len(data), where)
    strata = _classes(part.labels, len(data), where)
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
    is_stream = isinstance(data, IterableDataset) or not hasattr(data, "__getitem__")
    if is_stream or not hasattr(data, "__len__"):
        raise ValueError(
            f"{where}: clients, shuffling and resuming need examples by index, got {type(data).__name__}, which is a "
            "stream; give a Dataset with __len__ and __getitem__ (Hugging Face: without streaming=True)"
        )


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
    given = names.tolist() if isinstance(names, Tensor | np.ndarray) else names
    # list(array) holds NumPy's scalars, list(tensor) tensors without axes.
    listed: list[Any] = [name.item() if isinstance(name, np.generic | Tensor) else name for name in given]
    _check_length("groups", len(listed), n, where)
    found = set(listed)
    strange = next((name for name in found if not isinstance(name, str | int) or isinstance(name, bool)), None)
    if strange is not None or len(set(map(type, found))) > 1:
        kinds = " and ".join(sorted({type(name).__name__ for name in found}))
        raise ValueError(f"{where}: groups must all be strings or all be integers, got {kinds}")
    ordered = sorted(found)
    number = {name: place for place, name in enumerate(ordered)}
    return torch.from_numpy(np.fromiter((number[name] for name in listed), np.int64, n)), tuple(ordered)


def _classes(labels: Sequence[int] | Tensor | None, n: int, where: str) -> Tensor | None:
    """Check the labels of a Part: integers [n] of classes, in whatever type they come, for millions take memory."""
    if labels is None:
        return None
    found = labels if isinstance(labels, Tensor) else torch.from_numpy(np.asarray(labels))
    if found.is_floating_point() or found.dim() != 1 or found.dtype == torch.bool:
        kind = f"{str(found.dtype).removeprefix('torch.')} {list(found.shape)}"
        raise ValueError(f"{where}: labels must be one class for each example, integers [{n}], got {kind}")
    _check_length("labels", len(found), n, where)
    if n and int(found.min()) < 0:
        raise ValueError(f"{where}: labels must be classes from 0, got {int(found.min())}")
    return found if found.dtype in TOKENS else found.long()


def _check_length(field: str, length: int, n: int, where: str) -> None:
    if length != n:
        raise ValueError(f"{where}: {field} must be one for each of {n} examples, got {length}")
