"""Texts come back as they were said, whichever layout they lie in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from flare_dist.data.batches import BatchSource
from flare_dist.data.config import DataConfig
from flare_dist.data.datasets import load
from flare_dist.data.partition import partition
from flare_dist.data.text import CHARACTERS, encode_text, load_texts

ROOT = Path(__file__).parent

SAMPLE = ROOT / "shakespeare"

SNIPPETS = {
    name: "".join(own["snippets"])
    for name, own in json.loads((SAMPLE / "train" / "plays.json").read_text())["user_data"].items()
}


def write(root: Path, user_data: Any) -> Path:
    for part in ("train", "test"):
        (root / part).mkdir(parents=True)
        (root / part / "all.json").write_text(json.dumps({"user_data": user_data}))
    return root


def windows(text: str, length: int = 80) -> dict[str, list[str]]:
    """LEAF's layout: every run of `length` characters, and the one after it."""
    places = range(len(text) - length)
    return {"x": [text[i : i + length] for i in places], "y": [text[i + length] for i in places]}


def decode(codes: torch.Tensor) -> str:
    return "".join(CHARACTERS[code] for code in codes.tolist())


def test_there_are_86_characters_and_the_rest_are_spaces() -> None:
    assert len(set(CHARACTERS)) == len(CHARACTERS) == 86
    assert decode(encode_text("Out, out\tbrief candle\u00e9")) == "Out, out brief candle "


def test_sequences_are_the_text_and_labels_the_character_after() -> None:
    train, test = load_texts(SAMPLE, 30)
    assert train.inputs.dtype == torch.uint8
    assert train.inputs.shape == train.labels.shape == (len(train), 30)
    assert torch.equal(train.inputs[:, 1:].long(), train.labels[:, :-1])
    assert train.groups is not None
    for group, text in enumerate(SNIPPETS.values()):
        own = train.groups == group
        said = "".join(decode(x) + decode(y[-1:]) for x, y in zip(train.inputs[own], train.labels[own]))
        assert said == text[: len(text) // 31 * 31]
    assert test.groups is not None
    assert test.groups.unique().tolist() == [0, 1, 5]  # two who spoke before, and Prospero


def test_both_layouts_say_the_same(tmp_path: Path) -> None:
    leaf = write(tmp_path / "leaf", {name: windows(text) for name, text in SNIPPETS.items()})
    tff = write(tmp_path / "tff", {name: {"snippets": [text[:50], text[50:]]} for name, text in SNIPPETS.items()})
    for one, other in zip(load_texts(leaf, 20), load_texts(tff, 20)):
        assert torch.equal(one.inputs, other.inputs)
        assert torch.equal(one.labels, other.labels)


def test_windows_that_do_not_overlap_are_pieces_of_their_own(tmp_path: Path) -> None:
    root = write(tmp_path / "x", {"A": {"x": ["abc", "bcd", "xyz"], "y": ["d", "e", "!"]}})
    assert decode(load_texts(root, 3)[0].inputs.flatten()) == "abcexy"  # of "abcde" + "xyz!", in runs of four


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b'{"user_data": {"A": {"snippets": ["caf\xe9"]}}}',
            r"^data\.root: .*all\.json: is not .*'utf-8' codec .* 0xe9",
        ),
        (b'{"user_data": {"A": {"snip', r"^data\.root: .*all\.json: is not in LEAF's or TFF's layout \(Unterminated"),
        (b"", r"^data\.root: .*all\.json: is not in LEAF's or TFF's layout \(Expecting value"),
        (b"[" * 100_000, r"^data\.root: .*all\.json: is not in LEAF's or TFF's layout \(RecursionError"),
        ('{"user_data": []}', r"^data\.root: .*all\.json: is not in LEAF's or TFF's layout"),
        ('{"user_data": {"A": {"snippets": [1]}}}', r"^data\.root: .*all\.json: is not in LEAF's or TFF's layout"),
        ('{"user_data": {"A": {"x": [1], "y": ["a"]}}}', r"^data\.root: .*all\.json: is not in LEAF's or TFF's layout"),
        ('{"user_data": {"A": {"snippets": []}, "A": {}}}', r"^data\.root: .*all\.json: is not .*A comes twice in it"),
        (None, r"^data\.root: .*train: there is no such folder$"),
        ("{", r"^data\.root: .*all\.json: is not in LEAF's or TFF's layout"),
        ("[]", r"^data\.root: .*all\.json: is not in LEAF's or TFF's layout"),
        ('{"user_data": {"A": {"x": ["a"], "y": []}}}', r"^data\.root: .*all\.json: is not in LEAF's or TFF's layout"),
        ('{"user_data": {"A": {"x": ["a"], "y": ["bc"]}}}', r"^data\.root: .*all\.json: is not .*'bc' is not one char"),
        (
            '{"user_data": {"A": {"snippets": ["short"]}}}',
            r"^data\.sequence_length: no speaker in .* has 101 characters, got 100; ",
        ),
    ],
)
def test_errors_name_the_key(tmp_path: Path, content: str | bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "train").mkdir()
        (tmp_path / "train" / "all.json").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ValueError, match=message) as caught:
        load_texts(tmp_path, 100)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < len(str(tmp_path)) + 250


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_texts_of_any_unicode_are_read(encoding: str, tmp_path: Path) -> None:
    root = write(tmp_path, {"Zo\u00eb \ud800": {"snippets": ["to be or not \u00e9"]}})
    for file in root.glob("*/all.json"):
        file.write_bytes(file.read_text().encode(encoding))
    assert decode(load_texts(root, 13)[0].inputs.flatten()) == "to be or not "


def test_a_file_and_its_copy_are_refused(tmp_path: Path) -> None:
    root = write(tmp_path, {"A": {"snippets": ["to be or not to be"]}})
    (root / "train" / "all (1).json").write_bytes((root / "train" / "all.json").read_bytes())
    with pytest.raises(ValueError, match=r"^data\.root: .*train/all\.json: A speaks in .*train/all \(1\)\.json too"):
        load_texts(root, 3)


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (write(tmp_path, {}) / "train" / "gone.json").symlink_to("/nowhere")
    with pytest.raises(ValueError, match=r"^data\.root: .*train/gone\.json: is not .*\(No such file or directory\)$"):
        load_texts(tmp_path, 3)


def data_config(**settings: Any) -> DataConfig:
    return DataConfig(name="shakespeare", root=str(SAMPLE), sequence_length=30, **settings)


def test_clients_are_speakers() -> None:
    data = load(data_config(), 0)
    assert data.input_shape == (30,)
    parts = partition(data_config(partition="natural"), data.train, data.task, data.num_classes, 5, 0)
    assert data.train.groups is not None
    assert [len(data.train.groups[part].unique()) for part in parts] == [1] * 5
    with pytest.raises(
        ValueError,
        match=r"^data\.partition: this partition divides by the class .*, got dirichlet with .* class_of=token; ",
    ):
        partition(data_config(partition="dirichlet"), data.train, data.task, data.num_classes, 5, 0)
    with pytest.raises(ValueError, match=r"^data\.augment: augmentation is for images"):
        load(data_config(augment="crop"), 0)


def test_batches_of_text_are_codes() -> None:
    data = load(data_config(), 0)
    source = BatchSource(data.train, data.mean, data.std, "cpu")
    ((inputs, labels),) = source.batches(torch.tensor([3, 1]), 5, None)
    assert inputs.dtype == labels.dtype == torch.int64
    assert torch.equal(inputs, data.train.inputs[[3, 1]].long())
    assert torch.equal(labels, data.train.labels[[3, 1]])
