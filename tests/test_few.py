"""The first examples of a Dataset: what batches look like, found out before a run."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from flare_dist.data.collate import stack_examples
from flare_dist.data.few import Few
from flare_dist.data.items import Items
from flare_dist.data.reader import Reader
from flare_dist.tasks.builtin import CLASSIFICATION
from tests.helpers.lazy import AsDict, Jittered


def few(data: Any, on_error: str = "stop", collate: Any = stack_examples) -> Few:
    return Few(Reader(Items(data, "data: train", collate), on_error))


class Counting(Jittered):
    def __init__(self, *settings: Any, **others: Any) -> None:
        super().__init__(*settings, **others)
        self.read: list[int] = []

    def __getitem__(self, index: int) -> Any:
        self.read.append(index)
        return super().__getitem__(index)


def test_four_examples_are_read_whatever_the_length() -> None:
    data = Counting(64)
    assert few(data).numbers == [0, 1, 32, 63]
    assert data.read == [0, 1, 32, 63]
    assert few(Jittered(1)).numbers == [0]


def test_examples_that_cannot_be_read_are_passed_over() -> None:
    assert few(Jittered(64, broken=(0, 2, 63)), "skip").numbers == [1, 3, 32]
    with pytest.raises(ValueError, match=r"^data: train: none of the first 8 examples can be read$"):
        few(Jittered(8, broken=tuple(range(8))), "skip")
    with pytest.raises(ValueError, match=r"^data: train: example 0 cannot be read"):
        few(Jittered(64, broken=(0,)))


def test_a_batch_has_as_many_examples_as_are_asked_for() -> None:
    inputs, labels = few(Jittered(3))(5)
    assert len(inputs) == len(labels) == 5
    assert labels.tolist() == [0, 1, 2, 0, 1]


def padded(examples: list[Any]) -> tuple[Tensor, Tensor]:
    rows = [torch.ones(label + 1) for _, label in examples]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), torch.tensor([label for _, label in examples])


def test_a_model_is_tried_on_zeros_if_inputs_have_one_shape_and_on_batches_if_not() -> None:
    one = few(AsDict())
    assert one.shape == (1, 6, 6)
    assert torch.equal(one.blank(CLASSIFICATION), torch.zeros(1, 1, 6, 6))  # type: ignore[arg-type]
    ragged = few(Jittered(), collate=padded)
    assert ragged.shape is None
    assert ragged.blank(CLASSIFICATION) is ragged
    own = dataclasses.replace(one._reader.items, collate=list)
    strange = Few(Reader(own))
    assert strange.shape is None
    assert strange.blank(CLASSIFICATION) is strange
    assert one.blank(CLASSIFICATION._replace(criterion=None)) is one, "a loss alone tells how the model is called"


def test_numbers_of_an_example_are_counted() -> None:
    def numbers(examples: list[Any]) -> tuple[Tensor, Tensor]:
        return torch.zeros(len(examples), 3), torch.zeros(len(examples), 7)

    assert few(Jittered(), collate=numbers).num_labels == 7
    assert few(Jittered()).num_labels is None
