"""Batches of any form: divided into inputs and labels, counted, cut into pieces, or refused in one line."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
import torch

from flare_dist.tasks.batch import count_examples, describe, labels_of, mapped, moved, pair, split
from tests.helpers.lazy import same

IMAGES, LABELS = torch.arange(24.0).view(6, 4), torch.arange(6)

Row = namedtuple("Row", ["image", "label"])


@pytest.mark.parametrize(
    "batch", [(IMAGES, LABELS), [IMAGES, LABELS], {"image": IMAGES, "label": LABELS}, {"labels": LABELS, "x": IMAGES}]
)
def test_pairs_and_dicts_with_labels_are_inputs_and_labels(batch: Any) -> None:
    assert same(pair(batch), (IMAGES, LABELS))
    assert labels_of(batch) is LABELS


def test_several_inputs_stay_a_dict() -> None:
    inputs, labels = pair({"input_ids": IMAGES, "attention_mask": IMAGES, "labels": LABELS})
    assert list(inputs) == ["input_ids", "attention_mask"]
    assert labels is LABELS


@pytest.mark.parametrize("batch", [IMAGES, (IMAGES, LABELS, LABELS), {"image": IMAGES}, {"label": LABELS}, "text"])
def test_others_are_no_pairs(batch: Any) -> None:
    with pytest.raises(ValueError, match=r"^task\.name: this task takes \(inputs, labels\), .* got a .*; give"):
        pair(batch)


NESTED = {"x": (IMAGES, [IMAGES, LABELS]), "row": Row(IMAGES, LABELS), "names": list("abcdef")}


def test_nested_batches_are_cut_as_slices() -> None:
    assert count_examples(NESTED) == 6
    pieces = split(NESTED, [2, 1, 3])
    assert [piece["names"] for piece in pieces] == [["a", "b"], ["c"], ["d", "e", "f"]]
    assert [type(piece["row"]) for piece in pieces] == [Row] * 3
    for piece, part in zip(pieces, (slice(0, 2), slice(2, 3), slice(3, 6))):
        assert same(piece["x"], (IMAGES[part], [IMAGES[part], LABELS[part]]))


@pytest.mark.parametrize("batch", [(IMAGES, LABELS[:3]), {"loss": torch.zeros(())}, ["a", "b"]])
def test_a_mean_over_examples_needs_a_number_of_them(batch: Any) -> None:
    with pytest.raises(ValueError, match=r"^task\.name: the loss must be \(sum, count\) if a batch does not show"):
        count_examples(batch)


@pytest.mark.parametrize("batch", [(IMAGES, LABELS[:3]), {"x": IMAGES, "scale": 2.0}, object()])
def test_what_has_no_rows_is_not_cut(batch: Any) -> None:
    with pytest.raises(ValueError, match=r"^engine\.gradient_accumulation_steps: must be 1 for batches that are not"):
        split(batch, [2, 4])


def test_tensors_are_mapped_and_moved_wherever_they_stand() -> None:
    doubled = mapped(lambda tensor: 2 * tensor, NESTED)
    assert torch.equal(doubled["x"][1][1], 2 * LABELS)
    assert doubled["names"] == NESTED["names"]
    assert moved(NESTED, torch.device("meta"))["row"].image.device.type == "meta"


def test_forms_are_named() -> None:
    assert describe({"image": 1, "mask": 2}) == "a dict of image, mask"
    assert describe((1, 2, 3)) == "a tuple of 3"
    assert describe(IMAGES) == "a Tensor [6, 4]"
