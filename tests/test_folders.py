"""Which folder is the test set, which folders are classes, and what is said of files that are left out."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from flare_dist.data.config import DataConfig
from flare_dist.data.datasets import DataSplits, load

EACH = {"train": 3, "test": 2, "val": 1}  # images of a class


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes in train/, test/ and val/: 6, 4 and 2 images."""
    for part, count in EACH.items():
        for name in ("hor", "ver"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                Image.new("L", (3, 2), 10 * i).save(tmp_path / part / name / f"{i}.png")
    return tmp_path


def read(root: Path) -> DataSplits:
    return load(DataConfig(name="image_folder", root=str(root)), seed=0)


def copy(root: Path, place: str) -> None:
    """One more image."""
    (root / place).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(root / "train/hor/0.png", root / place)


def refused(root: Path, place: str, problem: str) -> None:
    path = re.escape(str(root / place if place else root))
    with pytest.raises(ValueError, match=rf"^data\.root: {path}: {problem}"):
        read(root)


@pytest.mark.parametrize(
    "place",
    [
        "{part}/.ipynb_checkpoints/0.png", "{part}/@eaDir/0.png", "{part}/__MACOSX/0.png", "{part}/.hidden/deep/0.png",
        "{part}/hor/.ipynb_checkpoints/0-checkpoint.png", "{part}/hor/@eaDir/0.png", "{part}/hor/._0.png",
        "{part}/hor/.DS_Store", "{part}/ver/Thumbs.db", "{part}/stray.png", "{part}/notes.txt",
    ],
)  # fmt: skip
def test_what_systems_leave_behind_changes_nothing(place: str, root: Path) -> None:
    before = read(root)
    for part in ("train", "test"):
        copy(root, place.format(part=part))
    after = read(root)
    assert after.num_classes == 2
    assert (len(after.train), len(after.test)) == (6, 4)
    assert after.test.labels.equal(before.test.labels)


@pytest.mark.parametrize("name", ["third", ".ipynb_checkpoints", "@eaDir"])
def test_an_empty_folder_does_not_make_val_the_test_set(name: str, root: Path) -> None:
    (root / "test" / name).mkdir()
    assert len(read(root).test) == 4


@pytest.mark.parametrize(
    ("name", "hint"),
    [("unknown", "; rename"), ("Ver", "; did you mean ver; rename"), ("hor ", "; did you mean hor; rename")],
)
def test_an_unknown_class_in_the_test_set_is_refused(name: str, hint: str, root: Path) -> None:
    copy(root, f"test/{name}/0.png")
    refused(root, f"test/{name}", f"is no class of train/, which has 2 classes: hor, ver{hint}")


def test_an_unknown_class_is_refused_whatever_it_holds_and_in_val_too(root: Path) -> None:
    copy(root, "test/unknown/deep/a.npy")
    refused(root, "test/unknown", "is no class of train/")
    shutil.rmtree(root / "test")
    copy(root, "val/unknown/0.png")
    refused(root, "val/unknown", "is no class of train/")


def test_classes_of_other_case_are_no_reason_for_val(root: Path) -> None:
    for name in ("hor", "ver"):
        (root / "test" / name).rename(root / "test" / name.title())
    refused(root, "test/Hor", "is no class of train/.*; did you mean hor")


def test_letters_composed_otherwise_are_another_name(root: Path) -> None:
    (root / "train/hor").rename(root / "train/caf\u00e9")
    (root / "test/hor").rename(root / "test/cafe\u0301")
    refused(root, "test/cafe\u0301", ".*did you mean caf\u00e9 \\(the same letters, composed otherwise\\)")


def missing(root: Path) -> None:
    shutil.rmtree(root / "test")


def flat(root: Path) -> None:
    """As Tiny-ImageNet is published."""
    missing(root)
    copy(root, "test/images/0.png")


def hollow(root: Path) -> None:
    for path in root.glob("test/*/*.png"):
        path.unlink()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (missing, "test/ is missing"),
        (flat, "test/ has no class of train/ (it holds images)"),
        (hollow, "test/ has no class of train/ (it holds nothing)"),
    ],
)
def test_val_stands_in_and_the_log_says_so(
    change: Callable[[Path], None], why: str, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert len(read(root).test) == 4
    assert "val/" not in caplog.text
    change(root)
    assert len(read(root).test) == 2
    assert f"data.root: {root}: val/ is the test set, for {why}" in caplog.text


def test_a_test_set_without_a_class_is_worth_a_warning(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.rmtree(root / "test/ver")
    assert read(root).test.labels.tolist() == [0, 0]
    assert f"{root}/test: has no images of 1 of the 2 classes of train/ (ver)" in caplog.text


@pytest.mark.parametrize(
    ("old", "new", "hint"),
    [
        ("train", "Train", r"has no train/ \(rename Train/ if it is meant to be train/\)"),
        ("train", "training", r"has no train/ \(rename training/ if it is meant to be train/\)"),
        (
            "train",
            "learn",
            r"has no train/ \(it holds learn, test, val\); it should hold train/<class>/\*\.jpg and test/",
        ),
        ("test", "Test", r"has no test/ or val/ \(rename Test/ if it is meant to be test/\)"),
        ("val", "validation", r"has no test/ or val/ \(rename validation/ if it is meant to be val/\)"),
        ("val", "valid", r"has no test/ or val/ \(rename valid/ if it is meant to be val/\)"),
        ("val", "Val", r"has no test/ or val/ \(rename Val/ if it is meant to be val/\)"),
    ],
)
def test_near_misses_are_asked_about(old: str, new: str, hint: str, root: Path) -> None:
    """Test/ beside val/ too, which would else be the test set."""
    (root / old).rename(root / new)
    if old == "val":
        shutil.rmtree(root / "test")
    refused(root, "", hint)


def test_what_is_no_data_set_is_explained(root: Path) -> None:
    refused(root / "nowhere", "", "there is no such folder")
    refused(root / "train/hor/0.png", "", "is a file; unpack it")
    shutil.rmtree(root / "test")
    shutil.rmtree(root / "val")
    refused(root, "", r"has no test/ or val/ \(it holds train\)")
    copy(root, "test/images/0.png")
    refused(
        root,
        "",
        r"val/ is missing and test/ has no class of train/ \(it holds images\); train/ has 2 classes: hor, ver",
    )
    for name in ("hor", "ver"):
        shutil.rmtree(root / "train" / name)
    refused(root, "train", "has no folders of classes")


def test_a_class_without_images_is_refused(root: Path) -> None:
    (root / "train/third").mkdir()
    refused(root, "train/third", r"has no images \(their names end in \.bmp, .*\); add some or remove the folder")
    for name in ("a.gif", "b.GIF", "c"):
        copy(root, f"train/third/{name}")
    refused(root, "train/third", r"has no images, but 2 \.gif, 1 without suffix \(their names end in ")


def test_a_test_set_without_images_is_refused(root: Path) -> None:
    for path in root.glob("test/*/*.png"):
        path.rename(path.with_suffix(".gif"))
    refused(root, "test", r"has no images, but 4 \.gif")


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


def test_a_broken_link_for_the_test_set_does_not_make_val_stand_in(root: Path) -> None:
    (root / "test").rename(root / "moved")
    (root / "test").symlink_to("/nowhere/test")
    refused(root, "test", "is a link to /nowhere/test, which cannot be found$")


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
