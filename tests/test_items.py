"""Examples of a Dataset keep their index, group and class when some are chosen."""

from __future__ import annotations

from typing import Any

import torch

from flare_dist.data.collate import stack_examples
from flare_dist.data.items import Items
from tests.helpers.lazy import Jittered


def test_chosen_examples_are_named_as_in_the_whole() -> None:
    codes = torch.arange(64) % 3
    whole = Items(Jittered(), "data: train", stack_examples, codes, ("a", "b", "c\n"), torch.arange(64))
    part = whole.subset(torch.tensor([10, 20, 30, 5])).subset(torch.tensor([3, 1]))
    assert len(part) == 2
    assert [part.index(number) for number in range(2)] == [5, 20]
    assert [part.name(number) for number in range(2)] == [r"example 5 (group c\n)", r"example 20 (group c\n)"]
    assert part.strata is not None
    assert part.strata.tolist() == [5, 20]
    assert len(whole) == 64
    assert Items(Jittered(), "data: test", stack_examples).name(7) == "example 7"


class Growing(Jittered):
    """A file that somebody still writes to."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 10

    def __len__(self) -> int:
        self.n += 1
        return self.n

    def __getitem__(self, index: int) -> Any:
        return index


def test_there_are_as_many_examples_as_at_the_beginning() -> None:
    items = Items(Growing(), "data: train", stack_examples)
    assert [len(items), len(items)] == [11, 11]
    assert len(items.subset(torch.arange(3))) == 3
