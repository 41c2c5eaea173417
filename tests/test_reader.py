"""Reading a batch: errors by index and group, alone or beside another example; labels that are no classes; seeds."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from flare_dist.data.collate import stack_examples
from flare_dist.data.items import Items
from flare_dist.data.reader import Key, Reader, one_thread
from tests.helpers.lazy import Jittered, same

GROUPS = torch.arange(64) % 5

NAMES = tuple(f"site {number}" for number in range(5))


def reader(data: Any, **settings: Any) -> Reader:
    return Reader(Items(data, "data: train", stack_examples, GROUPS, NAMES), **settings)


class Uneven(Jittered):
    """One example has another size, one another key."""

    def __getitem__(self, index: int) -> Any:
        image, label = super().__getitem__(index)
        if index == 33:
            return {"image": image[:, :5], "label": label}
        return {"image": image, "label": label} | ({"mask": image} if index == 35 else {})


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ([30, 33], "example 33 (group site 3) cannot be collated with example 30 (group site 0): stack expects"),
        (
            [30, 35],
            "example 35 (group site 0) cannot be collated with example 30 (group site 0): it has image, label, ",
        ),
    ],
)
def test_examples_that_differ_are_named(numbers: list[int], said: str) -> None:
    found = reader(Uneven())[Key(0, numbers)]
    assert found.batch is None
    assert found.problem.startswith(f"data: train: {said}")


def stubborn(examples: list[Any]) -> Any:
    if any(label == 3 for _, label in examples):
        raise KeyError("three")
    return torch.stack([image for image, _ in examples]), torch.tensor([label for _, label in examples])


def test_a_collate_that_fails_names_the_example() -> None:
    own = reader(Jittered())
    own = dataclasses.replace(own, items=dataclasses.replace(own.items, collate=stubborn))
    said = own[Key(0, [4, 7, 5])].problem
    assert said.startswith("data: train: example 7 (group site 2) cannot be collated: KeyError: 'three' (")


def crowded(examples: list[Any]) -> Any:
    if len(examples) > 2:
        raise RuntimeError("too many")
    return torch.zeros(len(examples))


def test_a_collate_that_fails_for_no_example_names_the_batch() -> None:
    own = reader(Jittered())
    own = dataclasses.replace(own, items=dataclasses.replace(own.items, collate=crowded))
    said = own[Key(0, [4, 7, 5])].problem
    assert said.startswith("data: train: example 4 (group site 4) to example 5 (group site 0) cannot be collated: t")


@pytest.mark.parametrize(("label", "is_class"), [(0, True), (3, True), (4, False), (-1, False), (-100, True)])
def test_a_label_that_is_no_class_is_told_before_a_gpu_asserts(label: int, is_class: bool) -> None:
    data = Jittered()
    data.labels[9] = label
    found = reader(data, num_classes=4, ignored=-100)[Key(0, [8, 9])]
    said = f"data: train: example 9 (group site 4): labels must be classes 0 to 3, got {label}"
    assert found.problem == ("" if is_class else said)
    assert reader(data)[Key(0, [8, 9])].problem == ""


@pytest.mark.parametrize("label", [math.nan, 1.0, 0.5])
def test_a_fraction_among_the_classes_is_named(label: float) -> None:
    data = [(torch.zeros(2), 1)] * 9 + [(torch.zeros(2), label)]
    said = f"data: train: example 9 (group site 4): labels must be integers, classes 0 to 3, got {label}"
    assert reader(data, num_classes=4)[Key(0, [8, 9])].problem == said
    assert reader(data)[Key(0, [8, 9])].problem == ""


def test_shares_of_classes_may_come_of_a_collate() -> None:
    def mixed(examples: list[Any]) -> Any:
        return torch.stack([image for image, _ in examples]), torch.full((len(examples), 4), 0.25)

    own = reader(Jittered(), num_classes=4)
    assert dataclasses.replace(own, items=dataclasses.replace(own.items, collate=mixed))[Key(0, [8, 9])].problem == ""


def test_a_collate_without_return_is_told() -> None:
    own = reader(Jittered())
    own = dataclasses.replace(own, items=dataclasses.replace(own.items, collate=lambda examples: None))
    assert (
        own[Key(0, [8, 9])].problem == "data: train: the collate must return a batch, got None; let it end with return"
    )


def test_what_is_drawn_follows_from_the_key() -> None:
    own = reader(Jittered())
    first = own[Key(5, [1, 2])].batch
    torch.rand(3)
    assert same(own[Key(5, [1, 2])].batch, first)
    assert not same(own[Key(6, [1, 2])].batch, first)
    assert torch.equal(own[Key(5, [2, 9])].batch[0][0], first[0][1])


def test_one_thread_reads_and_the_others_come_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
