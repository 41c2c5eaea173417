"""Listing of a tree of images, root/train/<class>/* and root/test/<class>/*: the classes and the files of each part.

scan.py reads one part. Here the parts are held against each other: which folder is the test set, and whether its
classes are those of train/. sites.py lists several such trees, one for each site.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from flare_dist.data.names import MEANT, alike, near, some
from flare_dist.data.scan import SUFFIXES, ClassFolder, broken_link, count_in_words, is_hidden, scan
from flare_dist.errors import printable, reason, refusal

log = logging.getLogger(__name__)

LAYOUT = "train/<class>/*.jpg and test/<class>/*.jpg (or val/<class>/*.jpg)"
# Other names that people give to train/ and test/.
_MEANT = {"train": MEANT["train"], "test": (*MEANT["test"], *MEANT["validation"], "validation")}

Listing = list[tuple[str, int]]  # (path, label)


class Tree(NamedTuple):
    """The files of a tree of images: the classes by name, and what is trained on and tested on."""

    classes: list[str]
    train: Listing
    test: Listing
    train_groups: list[str] | None = None  # of each image; None = there are no groups
    test_groups: list[str] | None = None


def list_folder(root: Path) -> Tree:
    """List the tree at `root`.

    test/ is the test set if it has any class of train/; val/ stands in if test/ is missing or has none of them, as
    Tiny-ImageNet's unlabelled one, which is logged. Raises ValueError that names the folder that is wrong.
    """
    check_layout(root)
    train, others = scan(root / "train")
    if not train:
        raise refusal("data.root", root / "train", f"has no folders of classes; data.root should hold {LAYOUT}")
    for name, folder in train.items():
        if not folder.images:
            problem = f"{no_images(folder.left_out)}; add some or remove the folder"
            raise refusal("data.root", root / "train" / name, problem)
    classes = list(train)
    found = find_test(root, classes)
    if found.passed_over:
        log.warning("data.root: %s: val/ is the test set, for %s", printable(root), found.passed_over)
    warn_of_untested(found.folder, [name for name, folder in found.classes.items() if folder.images], classes)
    log_left_out(root, [*train.values(), *found.classes.values()], others + found.others)
    return Tree(classes, labelled(train, classes), labelled(found.classes, classes))


def check_layout(root: Path) -> None:
    """Raise ValueError unless root has a train/ and a test/ or val/; it suggests a folder that may be meant."""
    check_is_folder(root, LAYOUT)
    names = visible_folders(root)
    for wanted, others in _MEANT.items():
        similar = alike(wanted, names)
        if wanted in names or (wanted == "test" and "val" in names and not similar):
            continue
        meant = similar or [name for name in names if name.casefold() in others]
        place = "val" if meant and "val" in meant[0].casefold() else wanted
        hint = f"rename {printable(meant[0])}/ if it is meant to be {place}/" if meant else f"it holds {some(names)}"
        missing = "train/" if wanted == "train" else "test/ or val/"
        sites = [name for name in names if wanted == "train" and (root / name / "train").is_dir()]
        if sites and not similar:
            hint = f"but {printable(sites[0])}/ has one; data.layout=sites is for trees of sites"
        raise refusal("data.root", root, f"has no {missing} ({hint}); it should hold {LAYOUT}")


def check_is_folder(root: Path, layout: str) -> None:
    """Raise ValueError that describes the layout unless `root` is a folder."""
    if not root.is_dir():
        problem = "is a file; unpack it and name the folder" if root.exists() else "there is no such folder"
        raise refusal("data.root", root, f"{problem} (it should hold {layout})")


def visible_folders(root: Path) -> list[str]:
    """List the names of the folders in `root` that are not hidden, sorted."""
    try:
        return sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not is_hidden(entry.name))
    except OSError as error:
        raise refusal("data.root", root, reason(error)) from error


class Tested(NamedTuple):
    """The test set of a tree."""

    folder: Path  # test/ or val/
    classes: dict[str, ClassFolder]
    others: Counter[str]  # files beside the classes, by suffix
    passed_over: str  # why val/ stands in for test/; "" if it does not


def find_test(root: Path, classes: list[str], whose: str = "train/") -> Tested:
    """Scan test/ or val/; ValueError if that one has an unknown class or no images, or neither has a known class.

    `whose` are the classes, for messages.
    """
    known = f"{len(classes)} classes: {some(classes)}"
    passed_over = ""
    for part in (root / "test", root / "val"):
        if part.is_symlink() and not part.exists():
            raise broken_link(part)
        if not part.is_dir():
            passed_over = f"{part.name}/ is missing" + (f" and {passed_over}" if passed_over else "")
            continue
        scanned, others = scan(part)
        found = {name: folder for name, folder in scanned.items() if folder}
        unknown = [name for name in found if name not in classes]
        if unknown and (len(unknown) < len(found) or any(alike(name, classes) for name in unknown)):
            hint = next(filter(None, (near(name, classes) for name in unknown)), "")
            problem = f"is no class of {whose}, which has {known}{hint}; rename or remove it"
            raise refusal("data.root", part / unknown[0], problem)
        if found and not unknown:
            if not any(folder.images for folder in found.values()):
                raise refusal("data.root", part, no_images(sum_left_out(found.values())))
            return Tested(part, found, others, passed_over)
        none = f"{part.name}/ has no class of {whose} (it holds {some(found)})"
        passed_over = none + (f" and {passed_over}" if passed_over else "")
    raise refusal("data.root", root, f"{passed_over}; {whose} has {known}; it should hold {LAYOUT}")


def warn_of_untested(place: Path, tested: Collection[str], classes: list[str]) -> None:
    """Warn of classes of which there is no test image."""
    lacking = [name for name in classes if name not in tested]
    if lacking:
        missing = f"no images of {len(lacking)} of the {len(classes)} classes of train/ ({some(lacking)})"
        log.warning("data.root: %s: has %s", printable(place), missing)


def log_left_out(root: Path, folders: Iterable[ClassFolder], beside: Counter[str]) -> None:
    """Log the files that are no images: those of the classes' folders, and those `beside` them."""
    others = beside + sum_left_out(folders)
    if others:
        log.info("data.root: %s: left out %s", printable(root), count_in_words(others))


def sum_left_out(folders: Iterable[ClassFolder]) -> Counter[str]:
    """Add up the files that are no images, by suffix."""
    return sum((folder.left_out for folder in folders), Counter[str]())


def labelled(part: dict[str, ClassFolder], classes: list[str]) -> Listing:
    """List the images of a part, class by class, each with the number of its class."""
    label = {name: i for i, name in enumerate(classes)}
    return [(path, label[name]) for name, folder in part.items() for path in folder.images]


def no_images(left_out: Counter[str]) -> str:
    """Say that a folder has no images, and what it has."""
    held = f", but {count_in_words(left_out)}" if left_out else ""
    return f"has no images{held} (their names end in {', '.join(SUFFIXES)})"
