"""Whole texts with a class each: filled up, cut, and held out by group or by class."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from flare_dist.data.documents import Text
from flare_dist.data.text_classes import whole_texts
from flare_dist.data.tokenizer import open_tokenizer

BYTES = open_tokenizer("bytes")


def text(said: str, label: str | int | None, group: str | None = None) -> Text:
    return Text(said, label, group, Path("x.jsonl"), 1)


def test_texts_are_cut_or_filled_up(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    documents = {"train": [text("ab", "y"), text("abcdef", "x"), text("abc", "y")], "test": [text("a", "x")]}
    parts, classes = whole_texts(documents, BYTES, 3)
    assert classes == ["x", "y"]
    assert parts["train"].inputs.tolist() == [[97, 98, 256], [97, 98, 99], [97, 98, 99]]
    assert parts["train"].labels.tolist() == [1, 0, 1]
    assert parts["train"].groups is None
    assert caplog.messages == [
        "data.sequence_length: 2 of 3 train texts have 3 tokens or more, and are cut there",
        "data.root: no test texts of 1 of 2 classes (y)",
    ]


def test_the_last_fifth_of_each_group_is_held_out() -> None:
    texts = [text(f"{group}{i}", i % 2, group) for i in range(5) for group in "ab"] + [text("c", 0, "c")]
    parts, classes = whole_texts({"train": texts}, BYTES, 2)
    assert classes == ["0", "1"]
    assert [bytes(row.tolist()) for row in parts["test"].inputs] == [b"a4", b"b4"]
    assert len(parts["train"]) == 9  # a group of one text is trained on
    assert parts["test"].groups is not None
    assert parts["test"].groups.tolist() == [0, 1]
    assert parts["test"].group_names == ("a", "b", "c")


def test_without_groups_each_class_is_held_out_alike() -> None:
    texts = [text("x", "a")] * 10 + [text("x", "b")] * 5
    parts, _ = whole_texts({"train": texts}, BYTES, 1)
    assert parts["test"].labels.bincount().tolist() == [2, 1]
    assert parts["train"].labels.bincount().tolist() == [8, 4]


def test_texts_without_a_class_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^data\.root: task\.name=classification needs the class .*; give each line a"
    ):
        whole_texts({"train": [text("x", None, "group")]}, BYTES, 1)
    with pytest.raises(ValueError, match=r"^data\.root: no group or class has the five texts .*; add some$"):
        whole_texts({"train": [text("x", 1)] * 4}, BYTES, 1)
