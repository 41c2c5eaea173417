"""Scan of a part: which files are images of which class, and how left-out files and broken links are reported."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from tests.helpers.images import copy, read, refused, write_parts


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes in train/, test/ and val/: 6, 4 and 2 images."""
    return write_parts(tmp_path)


@pytest.mark.parametrize(
    "place",
    [
        "{part}/.ipynb_checkpoints/0.png", "{part}/@eaDir/0.png", "{part}/__MACOSX/0.png", "{part}/.hidden/deep/0.png",
        "{part}/hor/.ipynb_checkpoints/0-checkpoint.png", "{part}/hor/@eaDir/0.png", "{part}/hor/._0.png",
        "{part}/hor/.DS_Store", "{part}/ver/Thumbs.db", "{part}/stray.png", "{part}/notes.txt",
    ],
)  # fmt: skip
def test_files_that_systems_leave_behind_change_nothing(place: str, root: Path) -> None:
    before = read(root)
    for part in ("train", "test"):
        copy(root, place.format(part=part))
    after = read(root)
    assert after.num_classes == 2
    assert (len(after.train), len(after.test)) == (6, 4)
    assert after.test.labels.equal(before.test.labels)


def test_files_left_out_are_counted(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    read(root)
    assert "left out" not in caplog.text
    for place in ("train/hor/a.gif", "train/hor/b.GIF", "test/ver/c.npy", "train/hor/._0.png", "train/stray.png",
                  "train/ver/.DS_Store", "train/hor/README", "train/hor/d.png~"):  # fmt: skip
        copy(root, place)
    read(root)
    (line,) = [message for message in caplog.messages if "left out" in message]
    start, found = line.split(" left out ")
    assert start == f"data.root: {root}:"
    assert sorted(found.split(", ")) == [
        "1 .npy", "1 .png beside the classes", "1 .png~", "1 hidden .png", "1 without suffix", "2 .gif"
    ]  # fmt: skip


def test_more_suffixes_are_images(root: Path) -> None:
    for suffix in ("jfif", "jpe", "JPEG", "webp"):
        copy(root, f"train/hor/more.{suffix}")
    assert len(read(root).train) == 10


def test_folders_within_a_class_belong_to_it(root: Path) -> None:
    copy(root, "train/hor/more.png/deep/0.png")  # a folder may be named as an image
    (root / "train/other").symlink_to(root / "train/ver")
    read_ = read(root)
    assert read_.train.labels.bincount().tolist() == [4, 3, 3]


@pytest.mark.parametrize("place", ["train/hor/x.png", "train/third", "test/hor/x.png", "train/hor/sub"])
def test_broken_links_are_named(place: str, root: Path) -> None:
    (root / place).symlink_to("/nowhere/x")
    refused(root, place, "is a link to /nowhere/x, which cannot be found$")


def test_a_link_to_its_own_folder_is_refused(root: Path) -> None:
    (root / "train/hor/again").symlink_to(root / "train/hor")
    refused(root, "train/hor/again", r"is a link to .*/train/hor, in which it lies$")


def test_a_folder_that_may_not_be_read_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = os.scandir

    def deny(path: str) -> object:
        if str(path).endswith("train/ver"):
            raise PermissionError(13, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", deny)
    refused(root, "train/ver", "Permission denied$")


def test_names_may_have_any_bytes(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As files from an older system have, in Latin-1: read, cached, and printable if something is wrong."""
    before = read(root).train
    for part in ("train", "test"):
        os.rename(root / part / "hor", os.fsencode(root / part) + b"/caf\xe9")
    path = os.fsencode(root / "train") + b"/caf\xe9/n\xe4\nchste.png"
    os.rename(os.fsencode(root / "train") + b"/caf\xe9/0.png", path)
    assert sorted(read(root).train.labels.tolist()) == before.labels.tolist()
    Path(os.fsdecode(path)).write_bytes(b"x")
    refused(root, r"train/caf\xe9/n\xe4\nchste.png", r"cannot be read \(")
    with pytest.raises(ValueError, match=r"^data\.root: ") as caught:
        read(root)
    str(caught.value).encode()
