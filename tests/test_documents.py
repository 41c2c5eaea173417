"""Texts are read from lines and files, whole and in order, and what is wrong is named with its line."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from flare_dist.data.documents import column, numbers, read_documents
from tests.helpers.texts import write_lines


def rows(root: Path, by_class: bool = False) -> dict[str, list[tuple[Any, ...]]]:
    return {part: [text[:3] for text in texts] for part, texts in read_documents(root, by_class).items()}


def test_a_file_and_a_folder_of_files_say_the_same(tmp_path: Path) -> None:
    lines = [{"text": "a\u2028b", "label": 1, "group": "g"}, {"text": "c", "label": 0, "group": "h"}]
    file = write_lines(tmp_path / "one" / "all.jsonl", *lines)
    write_lines(tmp_path / "two" / "1.jsonl", lines[0])
    write_lines(tmp_path / "two" / "deeper" / "2.NDJSON", "", lines[1])
    expected = {"train": [("a\u2028b", 1, "g"), ("c", 0, "h")]}
    assert rows(file) == rows(file.parent) == rows(tmp_path / "two") == expected


@pytest.mark.parametrize("form", ["folders", "files"])
def test_parts_are_folders_or_files(form: str, tmp_path: Path) -> None:
    for part in ("train", "test", "validation"):
        write_lines(tmp_path / part / "x.jsonl" if form == "folders" else tmp_path / f"{part}.jsonl", {"text": part})
    assert rows(tmp_path) == {part: [(part, None, None)] for part in ("train", "test", "validation")}


def test_the_folder_of_a_txt_file_is_its_group_or_its_class(tmp_path: Path) -> None:
    for place in ("ann/1.txt", "ann/more/2.TXT", "bob/1.txt", "carol.txt", ".hidden.txt", "__MACOSX/x.txt"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(b"\xef\xbb\xbf" + place.encode())
    assert rows(tmp_path)["train"] == [
        ("carol.txt", None, "carol"),
        ("ann/1.txt", None, "ann"),
        ("ann/more/2.TXT", None, "ann"),
        ("bob/1.txt", None, "bob"),
    ]
    (tmp_path / "carol.txt").unlink()
    assert [row[1:] for row in rows(tmp_path, by_class=True)["train"]] == [("ann", None)] * 2 + [("bob", None)]
    assert rows(tmp_path / "bob" / "1.txt")["train"] == [("bob/1.txt", None, None)]


def test_empty_texts_and_other_files_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    write_lines(tmp_path / "x.jsonl", {"text": " \n"}, {"text": "a"}, {"text": ""})
    (tmp_path / "notes.md").write_text("x")
    assert rows(tmp_path) == {"train": [("a", None, None)]}
    assert f"data.root: {tmp_path}: left out 1 .md" in caplog.messages
    assert f"data.root: {tmp_path}: left out 2 empty texts" in caplog.messages


def test_half_of_a_surrogate_pair_does_not_stop_a_tokenizer(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "x.jsonl", '{"text": "a\\ud800b"}')
    assert rows(file) == {"train": [("a?b", None, None)]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"line 2: is not JSON \(Expecting"),
        ("[" * 100_000, r"line 2: is not JSON \(RecursionError"),
        ("[]", r'line 2: must be an object with a string "text", got list$'),
        ("{}", r'line 2: must be an object with a string "text", got nothing$'),
        ('{"content": "x"}', r'line 2: must be an object with a string "text", got content$'),
        ('{"text": 3}', r'line 2: must be an object with a string "text", got text$'),
        ('{"text": "x", "label": true}', r"line 2: label must be a string or an integer, got bool$"),
        ('{"text": "x", "group": [1]}', r"line 2: group must be a string or an integer, got list$"),
    ],
)
def test_a_wrong_line_is_named(line: str, message: str, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "x.jsonl", {"text": "good"}, line)
    with pytest.raises(ValueError, match=rf"^data\.root: .*x\.jsonl: {message}") as caught:
        read_documents(file, False)
    assert str(caught.value).isprintable()


def test_roots_that_hold_no_texts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^data\.root: .*gone: there is no such file or folder; it should hold \*\.j"):
        read_documents(tmp_path / "gone", False)
    with pytest.raises(ValueError, match=r"^data\.root: .*: has no texts; it should hold \*\.jsonl or <name>/\*\.txt"):
        read_documents(tmp_path, False)
    write_lines(tmp_path / "train" / "x.jsonl", {"text": " "})
    with pytest.raises(ValueError, match=r"^data\.root: .*: has train but no test; it should hold"):
        read_documents(tmp_path, False)
    write_lines(tmp_path / "test" / "x.jsonl", {"text": "x"})
    with pytest.raises(ValueError, match=r"^data\.root: .*train: has no texts; all are empty$"):
        read_documents(tmp_path, False)
    (tmp_path / "test" / "y.txt").write_text("y")
    with pytest.raises(ValueError, match=r"^data\.root: .*test: holds x\.jsonl and y\.txt; keep files of one kind$"):
        read_documents(tmp_path / "test", False)


def test_files_that_are_not_utf_8_or_cannot_be_opened_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"^data\.root: .*x\.txt: 'utf-8' codec .* 0xe9.*; save it as UTF-8$"):
        read_documents(tmp_path, False)
    (tmp_path / "x.txt").unlink()
    (tmp_path / "y.txt").symlink_to("/nowhere")
    with pytest.raises(ValueError, match=r"^data\.root: .*y\.txt: is a link to /nowhere, which cannot be found$"):
        read_documents(tmp_path, False)


def test_a_column_is_full_and_of_one_type_or_absent(tmp_path: Path) -> None:
    texts = read_documents(
        write_lines(tmp_path / "x.jsonl", {"text": "a", "label": "b", "group": 1}, {"text": "c", "label": 2}), False
    )["train"]
    assert column([], "group") is None
    assert column(texts[:1], "group") == [1]
    with pytest.raises(ValueError, match=r"x\.jsonl: line 2: has no group, and others have; give all of them one$"):
        column(texts, "group")
    with pytest.raises(ValueError, match=r"x\.jsonl: line 2: label must be of one type in all, got int beside str$"):
        column(texts, "label")


def test_values_are_numbered_by_their_place_among_the_names() -> None:
    assert numbers(["b", "a", "b"], ["a", "b"]).tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("name", "renaming"),
    [
        ("val/x.jsonl", "rename val/ to validation/"),
        ("Dev/x.jsonl", "rename Dev/ to validation/"),
        ("valid.jsonl", "rename valid.jsonl to validation.jsonl"),
        ("testing.ndjson", "rename testing.ndjson to test.ndjson"),
    ],
)
def test_a_part_under_another_name_is_not_passed_over(name: str, renaming: str, tmp_path: Path) -> None:
    for part in ("train.jsonl", "test.jsonl"):
        write_lines(tmp_path / part, {"text": part})
    (tmp_path / "README.md").write_text("x")
    assert list(rows(tmp_path)) == ["train", "test"]
    write_lines(tmp_path / name, {"text": "x"})
    with pytest.raises(ValueError, match=rf"^data\.root: .*: is no part of the data, for parts are .*; {renaming}$"):
        rows(tmp_path)
