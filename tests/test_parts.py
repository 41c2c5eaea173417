"""Parts of a user's data set: which are resident, how their groups are numbered, and what is refused in one line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from flare_dist import Part, Source
from flare_dist.data.config import DataConfig
from flare_dist.data.datasets import load
from flare_dist.data.examples import Examples
from flare_dist.data.items import Items
from flare_dist.data.parts import open_part

TABLE = TensorDataset(torch.arange(24.0).view(6, 4), torch.tensor([0, 1, 2, 0, 1, 2]))


class Numbers(Dataset[tuple[Tensor, int]]):
    """Six examples that are read one by one."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((4,), float(index)), index % 3


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(6))


def resident_part(data: Any) -> Examples:
    found = open_part(data, "data: train")
    assert isinstance(found, Examples)
    return found


def test_tensors_stay_as_they_are() -> None:
    """Of any rank and dtype: a table of floats is no text, integers are."""
    draws = torch.Generator().manual_seed(0)
    for shape in ((4,), (2, 9), (1, 8, 8), (1, 3, 4, 5)):
        numbers = torch.randn(6, *shape, generator=draws)
        found = resident_part(TensorDataset(numbers, torch.arange(6)))
        assert found.inputs is numbers
        assert not found.is_text
    assert resident_part(TensorDataset(torch.arange(12).view(6, 2), torch.arange(6))).is_text
    assert resident_part(TensorDataset(torch.zeros(6, 2).byte(), torch.arange(6))).is_text
    assert not resident_part(TensorDataset(torch.zeros(6, 1, 2, 2).byte(), torch.arange(6))).is_text


def test_a_subset_of_tensors_is_resident_too() -> None:
    found = resident_part(Subset(Subset(TABLE, [5, 3, 1]), [2, 0]))
    assert found.inputs.tolist() == TABLE.tensors[0][[1, 5]].tolist()
    assert found.labels.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("groups", "names", "codes"),
    [
        (["b", "a", "b", "c", "a", "b"], ("a", "b", "c"), [1, 0, 1, 2, 0, 1]),
        ([10, 9, 10, 10, 9, 9], (9, 10), [1, 0, 1, 1, 0, 0]),
        (np.array(["x"] * 6), ("x",), [0] * 6),
        (torch.tensor([3, 3, 3, 1, 1, 1]), (1, 3), [1, 1, 1, 0, 0, 0]),
        (list(np.array([3, 3, 3, 1, 1, 1])), (1, 3), [1, 1, 1, 0, 0, 0]),
        (np.array([np.int64(3), 1] * 3, dtype=object), (1, 3), [1, 0] * 3),
        (list(np.array(["b", "a"] * 3)), ("a", "b"), [1, 0] * 3),
        (list(torch.tensor([3, 1] * 3)), (1, 3), [1, 0] * 3),
    ],
)
def test_groups_are_numbered_in_order_of_their_names(groups: Any, names: tuple[Any, ...], codes: list[int]) -> None:
    found = open_part(Part(TABLE, groups=groups), "data: train")
    assert found.group_names == names
    assert found.groups is not None
    assert found.groups.tolist() == codes


class Unsized(Numbers):
    """A Dataset whose length is an error, or none."""

    def __init__(self, length: Any) -> None:
        self.length = length

    def __len__(self) -> int:
        if isinstance(self.length, Exception):
            raise self.length
        return self.length


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (
            Stream(),
            "clients, shuffling and resuming need examples by index, got Stream, which is a stream",
        ),
        (iter(range(6)), "clients, shuffling and resuming need examples by index, got range_iterator, which is"),
        ({"train": TABLE, "test": TABLE}, "must be one Dataset, got dict with train, test; give one of them"),
        (Part(TABLE, groups=["a"] * 5), "groups must be one for each of 6 examples, got 5"),
        (Part(TABLE, groups=["a", 1] * 3), "groups must all be strings or all be integers, got int and str"),
        (Part(TABLE, groups=[0.5] * 6), "groups must all be strings or all be integers, got float"),  # type: ignore[list-item]
        (Part(TABLE, labels=[0] * 5), "labels must be one for each of 6 examples, got 5"),
        (Part(TABLE, labels=torch.zeros(6)), r"labels must be one class for each .*integers \[6\], got float32 \[6\]"),
        (Part(TABLE, labels=[-1] * 6), "labels must be classes from 0, got -1"),
        (None, "must be a Dataset, got NoneType; give one with __len__ and __getitem__"),
        (5, "must be a Dataset, got int; give one with"),
        ("images/train", "must be a Dataset, got str; give one with"),
        (Unsized(OSError("disk gone")), r"len\(\) of Unsized fails: OSError: disk gone \(.*test_parts"),
        (Unsized(6.0), r"len\(\) of Unsized fails: TypeError: 'float' object"),
        (Unsized(-1), r"len\(\) of Unsized fails: __len__\(\) should return >= 0"),
        (Subset(TABLE, [0, 6]), r"a Subset of 6 examples must have indices 0 to 5, got 6"),
        (Subset(Subset(Numbers(), [0, 9]), [0]), r"a Subset of 6 examples must have indices 0 to 5, got 9"),
        (Part(TABLE, groups=5), "groups must be one for each of 6 examples, got int"),  # type: ignore[arg-type]
        (Part(TABLE, groups=[["a"]] * 6), "groups must all be strings or all be integers, got list"),  # type: ignore[list-item]
        (Part(TABLE, groups=torch.zeros(6, 2)), "groups must all be strings or all be integers, got list"),
        (Part(TABLE, labels=[None] * 6), r"labels must be one class for each .*\[6\], got NoneType"),  # type: ignore[list-item]
        (Part(TABLE, labels=["a", 0] * 3), r"labels must be one class for each .*\[6\], got int and str"),  # type: ignore[list-item]
        (Part(TABLE, labels=[[0], [1, 2]] * 3), r"labels must be one class for each .*\[6\], got list"),  # type: ignore[list-item]
        (Part(TABLE, labels=[2**70] * 6), r"labels must be one class for each .*\[6\], got int"),
        (Part(TABLE, labels=7), r"labels must be one class for each .*\[6\], got int"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_part_is_refused_in_one_line(part: Any, said: str) -> None:
    with pytest.raises(ValueError, match=rf"^data: train: {said}"):
        load(DataConfig(), 0, source=Source(part, TABLE))


@pytest.mark.parametrize("test", [None, "images/test"])
def test_a_test_part_is_needed(test: Any) -> None:
    with pytest.raises(ValueError, match=r"^data: test: must be a Dataset, got"):
        load(DataConfig(), 0, source=Source(TABLE, test))


@pytest.mark.parametrize("kind", [np.uint16, np.uint32, np.uint64, np.int8])
def test_classes_may_be_integers_of_any_type(kind: Any) -> None:
    found = open_part(Part(Numbers(), labels=np.arange(6).astype(kind)), "data: train")  # type: ignore[arg-type]
    assert isinstance(found, Items)
    assert found.strata is not None
    assert found.strata.tolist() == [0, 1, 2, 3, 4, 5]


def test_classes_are_counted_and_named() -> None:
    assert load(DataConfig(), 0, source=Source(TABLE, TABLE)).num_classes == 3
    named = load(DataConfig(), 0, source=Source(TABLE, TABLE, classes=["a", "b", "c", "d"]))
    assert named.num_classes == 4
    assert named.class_names == ("a", "b", "c", "d")
    given: Any = np.int64(4)
    counted = load(DataConfig(), 0, source=Source(TABLE, TABLE, classes=given)).num_classes
    assert type(counted) is int
    assert counted == 4
    given = np.array(["a", "b", "c"])
    names = load(DataConfig(), 0, source=Source(TABLE, TABLE, classes=given)).class_names
    assert list(map(type, names)) == [str] * 3
    with pytest.raises(ValueError, match=r"^data: train: labels must be classes 0 to 1, got 2$"):
        load(DataConfig(), 0, source=Source(TABLE, TABLE, classes=2))


def test_a_validation_part_stands_in_place_of_the_fraction() -> None:
    source = Source(TABLE, TABLE, validation=Subset(TABLE, [0, 1]))
    held = load(DataConfig(), 0, source=source).validation
    assert held is not None
    assert len(held) == 2
    with pytest.raises(ValueError, match=r"^data\.validation: the data have a validation part, got 0\.5"):
        load(DataConfig(validation=0.5), 0, source=source)
