"""Labels and class names that are known of torchvision's Datasets, Hugging Face's and Subsets of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Subset, TensorDataset, random_split

from flare_dist.data.known import known_classes, known_labels


class Pictures:
    """Has what torchvision's Datasets have."""

    def __init__(self, targets: Any, target_transform: Any = None) -> None:
        self.targets, self.target_transform = targets, target_transform
        self.classes = ["cat", "dog"]

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        raise AssertionError("nothing is read")


class ClassLabel:
    def __init__(self) -> None:
        self.names = ["cat", "dog"]


class Table(Pictures):
    """Has what `datasets.Dataset` has."""

    def __init__(self, column: str = "label") -> None:
        self.features = {"image": None, column: ClassLabel()}
        self.column = column

    def with_format(self, kind: str) -> Table:
        assert kind == "numpy"
        return self

    def select_columns(self, column: str) -> dict[Any, Any]:
        return Rows({column: np.array([0, 1, 1, 0])})


class Rows(dict[Any, Any]):
    def __getitem__(self, key: Any) -> Any:
        return self if isinstance(key, slice) else super().__getitem__(key)


def kind(data: Any) -> str:
    return type(data).__name__


@pytest.mark.parametrize(
    "data",
    [Pictures([0, 1, 1, 0]), Pictures(torch.tensor([0, 1, 1, 0])), Table(), Table("labels")],
    ids=kind,
)
def test_labels_and_names_are_known_without_reading(data: Any) -> None:
    labels = known_labels(data)
    assert labels is not None
    assert labels.tolist() == [0, 1, 1, 0]
    assert known_classes(data) == ("cat", "dog")


def test_of_tensors_that_a_users_collate_reads_one_by_one() -> None:
    labels = torch.tensor([2, 0, 1])
    assert known_labels(TensorDataset(torch.zeros(3, 2), labels)) is labels
    assert known_labels(TensorDataset(torch.zeros(3, 2), torch.zeros(3, 4))) is None


def test_of_subsets_too() -> None:
    part = Subset(Subset(Pictures([0, 1, 1, 0]), [3, 2, 1]), [2, 0])  # type: ignore[arg-type, var-annotated]
    labels = known_labels(part)
    assert labels is not None
    assert labels.tolist() == [1, 0]
    assert known_classes(part) == ("cat", "dog")
    halves = random_split(Pictures([0, 1, 1, 0]), [2, 2])  # type: ignore[arg-type, var-annotated]
    assert all(known_labels(half) is not None for half in halves)


@pytest.mark.parametrize(
    "data",
    [
        Pictures([0, 1, 1, 0], target_transform=str),  # makes other labels of them
        Pictures([0.5, 1, 1, 0]),
        Pictures([[1, 2], [3]] * 2),
        Pictures(["a", "b", "c", "d"]),
        Pictures([0, 1, 1]),
        Pictures(None),
        [1, 2, 3],
    ],
    ids=kind,
)
def test_what_is_no_class_is_not_known(data: Any) -> None:
    assert known_labels(data) is None
