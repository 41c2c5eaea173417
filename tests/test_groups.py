"""Tables of natural groups as people's tools write them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers.images import read

NAMES = ["train/ant/0.png", "train/ant/1.png", "train/b,ee/0.png"]
GROUPS = ["b", "ä", "b"]
CODES = [0, 1, 0]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in (*NAMES, "test/ant/0.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (3, 2)).save(tmp_path / name)
    return tmp_path


def groups(root: Path, table: str | bytes) -> list[int] | None:
    (root / "groups.csv").write_bytes(table.encode() if isinstance(table, str) else table)
    found = read(root).train.groups
    return None if found is None else found.tolist()


def table(delimiter: str = ",", end: str = "\n", quote: str = '"') -> str:
    return "".join(f"{quote}{name}{quote}{delimiter}{group}{end}" for name, group in zip(NAMES, GROUPS))


@pytest.mark.parametrize(
    "content",
    [
        table(),
        table(end="\r\n"),
        "\ufeff" + table(),
        table(";"),
        table(";", quote=""),
        table("\t", quote=""),
        "\ufeff" + table("; ", "\r\n"),
        "path,group\n" + table(),
        table().replace("/", "\\"),
        table().replace("train", "./train"),
        table(";", "\r\n", "").replace("/", "\\"),
        table() + "\n\ntrain/absent.png,other\n",
        table() + table(),
    ],
)
def test_tables_are_read_as_tools_write_them(content: str, root: Path) -> None:
    assert groups(root, content) == CODES


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "has no line 'train/ant/0.png,<group>'$"),
        (table().replace("train/ant/1.png", "ant/1.png"), "has no line 'train/ant/1.png,<group>'$"),
        (table().replace("ä", ""), "has no group for train/ant/1.png$"),
        (table() + "train/ant/0.png,c", "puts train/ant/0.png into two groups, b and c$"),
        (table().encode("utf-16"), "is UTF-16; save it as UTF-8$"),
        (table().encode()[:-30] + b"\xff", r"has no line .*; the table is not UTF-8, save it as such$"),
        ('x,"' + "y" * 200_000, r"is not a table \(field larger than"),
    ],
)
def test_tables_that_cannot_be_used_are_named(content: str | bytes, problem: str, root: Path) -> None:
    with pytest.raises(ValueError, match=rf"^data\.root: {root}/groups\.csv: {problem}"):
        groups(root, content)


def test_groups_have_their_names(root: Path) -> None:
    (root / "groups.csv").write_text(table())
    assert read(root).train.group_names == ("b", "ä")


def test_test_images_have_groups_if_the_table_names_them_all(root: Path) -> None:
    assert groups(root, table()) == CODES
    assert read(root).test.groups is None
    assert groups(root, table() + "test/ant/0.png,z\n") == CODES
    test = read(root).test
    assert test.groups is not None
    assert test.groups.tolist() == [0]
    assert test.group_names == ("z",)
    (root / "test/ant/1.png").write_bytes((root / "test/ant/0.png").read_bytes())
    with pytest.raises(ValueError, match=rf"^data\.root: {root}/groups\.csv: has no line 'test/ant/1.png,<group>'$"):
        read(root)


def test_the_lines_of_val_count_if_it_stands_in(root: Path) -> None:
    (root / "test").rename(root / "val")
    assert groups(root, table() + "val/ant/0.png,z\n") == CODES
    assert read(root).test.group_names == ("z",)


def test_a_table_that_cannot_be_opened_is_named(root: Path) -> None:
    (root / "groups.csv").symlink_to("/nowhere")
    with pytest.raises(ValueError, match=rf"^data\.root: {root}/groups\.csv: No such file or directory$"):
        read(root)


def test_names_of_any_bytes_may_stand_in_it(root: Path) -> None:
    os.rename(root / "train/ant/0.png", os.fsencode(root) + b"/train/ant/\xe9.png")
    content = table().encode().replace(b"ant/0", b"ant/\xe9").replace("ä".encode(), b"\xe4")
    assert groups(root, content) == [1, 0, 0]  # in sorted order of the files, 1.png before the other


def test_without_a_table_there_are_no_groups(root: Path) -> None:
    assert read(root).train.groups is None
