"""Listing of a tree of images, root/train/<class>/* and root/test/<class>/*: the classes and the files of each part.

scan.py reads one part. Here the parts are held against each other: which folder is the test set, and whether its
classes are those of train/.
"""

from __future__ import annotations

import difflib
import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from flare_dist.data.scan import SUFFIXES, ClassFolder, broken_link, count_in_words, is_hidden, scan
from flare_dist.errors import printable, reason, refusal

log = logging.getLogger(__name__)

LAYOUT = "train/<class>/*.jpg and test/<class>/*.jpg (or val/<class>/*.jpg)"
# Other names that people give to train/ and test/.
_MEANT = {"train": ("training",), "test": ("testing", "val", "valid", "validation", "dev", "eval")}
_SHOWN = 5  # names that a message lists

Listing = list[tuple[str, int]]  # (path, label)


def list_folder(root: Path) -> tuple[list[str], Listing, Listing]:
    """List (classes, train, test) of the tree at `root`.

    test/ is the test set if it has any class of train/; val/ stands in if test/ is missing or has none of them, as
    Tiny-ImageNet's unlabelled one, which is logged. Raises ValueError that names the folder that is wrong.
    """
    _check_layout(root)
    train, others = scan(root / "train")
    if not train:
        raise refusal("data.root", root / "train", f"has no folders of classes; data.root should hold {LAYOUT}")
    for name, folder in train.items():
        if not folder.images:
            problem = f"{_no_images(folder.left_out)}; add some or remove the folder"
            raise refusal("data.root", root / "train" / name, problem)
    test, others_of_test = _test_set(root, list(train))
    others += sum((folder.left_out for folder in (*train.values(), *test.values())), others_of_test)
    if others:
        log.info("data.root: %s: left out %s", printable(root), count_in_words(others))
    return list(train), _labelled(train, list(train)), _labelled(test, list(train))


def _check_layout(root: Path) -> None:
    """Raise ValueError unless root has a train/ and a test/ or val/; it suggests a folder that may be meant."""
    if not root.is_dir():
        problem = "is a file; unpack it and name the folder" if root.exists() else "there is no such folder"
        raise refusal("data.root", root, f"{problem} (it should hold {LAYOUT})")
    try:
        names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not is_hidden(entry.name))
    except OSError as error:
        raise refusal("data.root", root, reason(error)) from error
    for wanted, others in _MEANT.items():
        alike = _alike(wanted, names)
        if wanted in names or (wanted == "test" and "val" in names and not alike):
            continue
        meant = alike or [name for name in names if name.casefold() in others]
        place = "val" if meant and "val" in meant[0].casefold() else wanted
        hint = f"rename {printable(meant[0])}/ if it is meant to be {place}/" if meant else f"it holds {_some(names)}"
        missing = "train/" if wanted == "train" else "test/ or val/"
        raise refusal("data.root", root, f"has no {missing} ({hint}); it should hold {LAYOUT}")


def _test_set(root: Path, classes: list[str]) -> tuple[dict[str, ClassFolder], Counter[str]]:
    """Scan test/ or val/; ValueError if that one has an unknown class or neither has a class of train/."""
    known = f"{len(classes)} classes: {_some(classes)}"
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
        if unknown and (len(unknown) < len(found) or any(_alike(name, classes) for name in unknown)):
            hint = next(filter(None, (_near(name, classes) for name in unknown)), "")
            problem = f"is no class of train/, which has {known}{hint}; rename or remove it"
            raise refusal("data.root", part / unknown[0], problem)
        if found and not unknown:
            if passed_over:
                log.warning("data.root: %s: val/ is the test set, for %s", printable(root), passed_over)
            _check_test(part, found, classes)
            return found, others
        none = f"{part.name}/ has no class of train/ (it holds {_some(found)})"
        passed_over = none + (f" and {passed_over}" if passed_over else "")
    raise refusal("data.root", root, f"{passed_over}; train/ has {known}; it should hold {LAYOUT}")


def _check_test(part: Path, found: dict[str, ClassFolder], classes: list[str]) -> None:
    """Raise ValueError if there are no images at all, and warn of classes that have none."""
    lacking = [name for name in classes if name not in found or not found[name].images]
    if len(lacking) == len(classes):
        left_out = sum((folder.left_out for folder in found.values()), Counter[str]())
        raise refusal("data.root", part, _no_images(left_out))
    if lacking:
        missing = f"no images of {len(lacking)} of the {len(classes)} classes of train/ ({_some(lacking)})"
        log.warning("data.root: %s: has %s", printable(part), missing)


def _labelled(part: dict[str, ClassFolder], classes: list[str]) -> Listing:
    label = {name: i for i, name in enumerate(classes)}
    return [(path, label[name]) for name, folder in part.items() for path in folder.images]


def _no_images(left_out: Counter[str]) -> str:
    held = f", but {count_in_words(left_out)}" if left_out else ""
    return f"has no images{held} (their names end in {', '.join(SUFFIXES)})"


def _some(names: Iterable[str]) -> str:
    """List the first few names."""
    listed = [printable(name) for name in names]
    return ", ".join(listed[:_SHOWN]) + (", …" if len(listed) > _SHOWN else "") or "nothing"


def _alike(name: str, names: Iterable[str]) -> list[str]:
    """Choose those of `names` that differ from `name` in case or in the composition of letters alone."""
    return [other for other in names if other != name and _plain(other) == _plain(name)]


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _near(name: str, classes: list[str]) -> str:
    """Ask whether another class is meant by `name`; "" if none resembles it."""
    close = _alike(name, classes) or difflib.get_close_matches(name, classes, 1)
    if not close:
        return ""
    same = unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", close[0])
    return f"; did you mean {printable(close[0])}{' (the same letters, composed otherwise)' if same else ''}"
