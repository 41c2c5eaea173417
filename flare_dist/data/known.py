"""Class labels and names that well-known Datasets give without being read: torchvision's, Hugging Face's, Subsets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset, TensorDataset

from flare_dist.data.examples import TOKENS
from flare_dist.tasks.batch import LABELS


def known_labels(data: Any) -> Tensor | None:
    """Return the class of each example, integers [n]; None if it is not known, or not an integer.

    They are the last tensor of a TensorDataset, the column "labels" or "label" of a `datasets.Dataset`, the `targets`
    of torchvision's, if no target_transform makes others of them.
    """
    if isinstance(data, Subset):
        whole = known_labels(data.dataset)
        return None if whole is None else whole[torch.as_tensor(data.indices, dtype=torch.int64)]
    found: Any = None
    if isinstance(data, TensorDataset):
        found = data.tensors[-1]
    elif isinstance(getattr(data, "features", None), Mapping) and hasattr(data, "select_columns"):
        column = next((name for name in LABELS if name in data.features), None)
        found = column and data.with_format("numpy").select_columns(column)[:][column]
    elif hasattr(data, "targets") and getattr(data, "target_transform", None) is None:
        found = data.targets
    if not isinstance(found, Tensor | np.ndarray | list) or len(found) != len(data):
        return None
    labels = as_integers(found)
    if labels is None or labels.dim() != 1 or not len(labels):
        return None
    return labels if int(labels.min()) >= 0 else None


def as_integers(values: Any) -> Tensor | None:
    """Convert numbers to a tensor of integers, of a type of which torch knows the minimum; None if they are others."""
    try:
        tensor = values if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))
    except (OverflowError, RuntimeError, TypeError, ValueError):  # lists of boxes, names, …
        return None
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        return None
    return tensor if tensor.dtype in TOKENS else tensor.long()


def known_classes(data: Any) -> tuple[str, ...]:
    """Return the names of the classes; () if they are not known."""
    if isinstance(data, Subset):
        return known_classes(data.dataset)
    names: Any = getattr(data, "classes", None)
    features = getattr(data, "features", None)
    if isinstance(features, Mapping):
        names = next((getattr(features[name], "names", None) for name in LABELS if name in features), None)
    is_named = isinstance(names, list | tuple) and bool(names) and all(isinstance(name, str) for name in names)
    return tuple(names) if is_named else ()
