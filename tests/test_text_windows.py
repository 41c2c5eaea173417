"""Each group's last fifth is its test, and who is too short for both is left out and counted."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from flare_dist.data.documents import Text
from flare_dist.data.text_windows import windows_of_texts
from flare_dist.data.tokenizer import open_tokenizer

BYTES = open_tokenizer("bytes")


def text(said: str, group: str | None = None) -> Text:
    return Text(said, None, group, Path("x.jsonl"), 1)


def said(row: torch.Tensor) -> str:
    return bytes(row.tolist()).decode()


def test_the_last_fifth_of_each_group_is_its_test() -> None:
    texts = [text("abcdefghijklmno", "b"), text("0123456789", "a")]
    parts = windows_of_texts({"train": texts}, BYTES, 1, None)
    train, test = parts["train"], parts["test"]
    assert train.group_names == test.group_names == ("a", "b")
    assert train.groups is not None
    assert test.groups is not None
    # Twelve of b's fifteen letters and eight of a's ten digits, in windows of one token and the next.
    assert [said(row) for row in train.inputs] == ["a", "c", "e", "g", "i", "k", "0", "2", "4", "6"]
    assert [said(row) for row in train.labels] == ["b", "d", "f", "h", "j", "l", "1", "3", "5", "7"]
    assert train.groups.tolist() == [1] * 6 + [0] * 4
    assert [said(row) for row in test.inputs] == ["m", "8"]
    assert test.groups.tolist() == [1, 0]


def test_groups_too_short_for_both_are_left_out_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    # 10 tokens of windows of two leave two to test; 9 leave one, which is no window.
    texts = [text("x" * 10, "long"), text("y" * 9, "short"), text("z", "mute")]
    parts = windows_of_texts({"train": texts}, BYTES, 1, None)
    assert parts["train"].group_names == ("long",)
    assert {said(row) for part in parts.values() for row in part.inputs} == {"x"}
    assert caplog.messages == [
        "data.root: left out 2 of 3 groups (50.00 % of the text), "
        "too short for a training and a test window of 2 tokens",
        "data.root: 4 train windows and 1 test windows of 1 tokens, of 1 group",
    ]


def test_texts_of_a_group_are_not_joined() -> None:
    texts = [text("abc", "g"), text("defgh", "g"), text("ij", "g")]
    parts = windows_of_texts({"train": texts}, BYTES, 1, None)
    assert [said(row) for row in parts["train"].inputs] == ["a", "d", "f"]  # not "c", whose follower is another text's
    assert [said(row) for row in parts["test"].inputs] == ["i"]


def test_parts_that_are_there_are_taken_as_they_are() -> None:
    documents = {
        "train": [text("abcd", "g")],
        "test": [text("efgh", "g"), text("ij", "new")],
        "validation": [text("kl", "g")],
    }
    parts = windows_of_texts(documents, BYTES, 1, None)
    assert [said(row) for part in parts.values() for row in part.inputs] == ["a", "c", "e", "g", "i", "k"]
    assert {part.group_names for part in parts.values()} == {("g", "new")}


def test_texts_without_groups_are_one_text_each() -> None:
    parts = windows_of_texts({"train": [text("abcdefghij")]}, BYTES, 1, None)
    assert len(parts["train"]) == 4
    assert parts["train"].groups is None
    assert parts["train"].group_names == ()


def test_a_length_that_leaves_nothing_is_refused() -> None:
    short = {"train": [text("abc", "g")]}
    with pytest.raises(
        ValueError,
        match=r"^data\.sequence_length: no text is long enough for a train window of 101 tokens, got 100; choose less",
    ):
        windows_of_texts(short, BYTES, 100, None)
    with pytest.raises(ValueError, match=r"got 100; choose less$"):
        windows_of_texts(short, BYTES, 100, 256)  # three tokens leave none to test, filled up or not
