"""Class labels and names that well-known Datasets give without being read: torchvision's, Hugging Face's, Subsets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset, TensorDataset

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
    try:
        labels = torch.as_tensor(found)
    except (RuntimeError, TypeError, ValueError):  # lists of boxes, names, …
        return None
    is_class = labels.dim() == 1 and not labels.is_floating_point() and labels.dtype != torch.bool
    return labels if is_class and len(labels) and int(labels.min()) >= 0 else None


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
