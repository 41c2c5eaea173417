"""The default collate: what is stacked, by key and by place, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flare_dist.data.collate import stack_examples


def test_images_become_tensors_as_torchvision_makes_them() -> None:
    red = Image.new("RGB", (4, 2), (255, 0, 51))
    inputs, labels = stack_examples([(red, 1), (red, 2)])
    assert inputs.shape == (2, 3, 2, 4)
    assert inputs.dtype == torch.float32
    assert inputs[0, :, 0, 0].tolist() == pytest.approx([1, 0, 0.2])
    assert labels.tolist() == [1, 2]
    assert labels.dtype == torch.int64
    assert stack_examples([Image.new("L", (3, 3), 255)]).shape == (1, 1, 3, 3)


def test_numbers_arrays_and_nested_containers_are_stacked() -> None:
    def example(value: float) -> dict[str, Any]:
        return {"price": value, "table": np.full((2, 3), value), "more": (torch.ones(2, dtype=torch.int32), [True])}

    found = stack_examples([example(0.5), example(1.5)])
    assert found["price"].dtype == found["table"].dtype == torch.float32
    assert found["price"].tolist() == [0.5, 1.5]
    assert found["table"].shape == (2, 2, 3)
    assert found["more"][0].dtype == torch.int32
    assert found["more"][1].tolist() == [[True], [True]]


def test_a_list_of_numbers_is_a_row() -> None:
    """A column of datasets.Dataset holds lists, of which torch's default makes a list of columns."""

    def example(value: int) -> dict[str, Any]:
        return {
            "input_ids": [value] * 3,
            "boxes": [[0.5, value], [1, 2]],
            "name": [["a"]],
            "none": [],
            "mixed": [1, "b"],
        }

    found = stack_examples([example(1), example(2)])
    assert found["input_ids"].tolist() == [[1, 1, 1], [2, 2, 2]]
    assert found["input_ids"].dtype == torch.int64
    assert found["boxes"].shape == (2, 2, 2)
    assert found["boxes"].dtype == torch.float32
    assert found["name"] == [[("a", "a")]]
    assert found["none"] == []
    assert found["mixed"][1] == ("b", "b")
    pairs = stack_examples([[[1.0, 2.0], 0], [[3.0, 4.0], 1]])
    assert [part.tolist() for part in pairs] == [[[1, 2], [3, 4]], [0, 1]]
    with pytest.raises(RuntimeError, match="equal size"):
        stack_examples([{"input_ids": [1, 2]}, {"input_ids": [1, 2, 3]}])


@pytest.mark.parametrize(
    ("examples", "said"),
    [
        ([{"a": 1, "b": 2}, {"a": 1}], "it has a, not a, b"),
        ([{"a": 1}, {"a": 1, "c": 2}], "it has a, c, not a"),
        ([{"a": {"x": 1}}, {"a": {"y": 1}}], "it has y, not x"),
        ([(1, 2), (1, 2, 3)], "it is a tuple of 3, not a tuple of 2"),
        ([(1, 2), 1], "it is a int, not a tuple of 2"),
        ([{"a": 1}, 1], "it has int, not a"),
    ],
)
def test_examples_of_another_form_are_refused(examples: list[Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}$"):
        stack_examples(examples)


def test_sizes_that_differ_are_refused_by_torch() -> None:
    with pytest.raises(RuntimeError, match="stack expects each tensor to be equal size"):
        stack_examples([torch.zeros(2), torch.zeros(3)])
