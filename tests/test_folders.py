"""Listing of a tree of images: which folder is the test set, and which folders are classes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.images import copy, read, refused, write_parts


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes in train/, test/ and val/: 6, 4 and 2 images."""
    return write_parts(tmp_path)


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


def test_a_root_without_a_data_set_is_explained(root: Path) -> None:
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


def test_a_broken_link_for_the_test_set_does_not_make_val_stand_in(root: Path) -> None:
    (root / "test").rename(root / "moved")
    (root / "test").symlink_to("/nowhere/test")
    refused(root, "test", "is a link to /nowhere/test, which cannot be found$")
