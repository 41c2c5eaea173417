"""Listing of a tree of images, root/train/<class>/* and root/test/<class>/*: classes, files, and what is no image.

The order is that of torchvision's ImageFolder: classes and files sorted, folders within a class included. Hidden
folders and files, which notebooks, NAS boxes and archives from a Mac leave behind, belong to no class.
"""

from __future__ import annotations

import difflib
import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from flare_dist.data.paths import reason, refusal, shown

log = logging.getLogger(__name__)

LAYOUT = "train/<class>/*.jpg and test/<class>/*.jpg (or val/<class>/*.jpg)"
SUFFIXES = (".bmp", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
# Hidden although the name does not begin with a dot.
_HIDDEN = {"__MACOSX", "@eaDir", "#recycle", "@Recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
# What newcomers call train/ and test/.
_MEANT = {"train": ("training",), "test": ("testing", "val", "valid", "validation", "dev", "eval")}
_SHOWN = 5  # names that a message lists

Listing = list[tuple[str, int]]  # (path, label)


@dataclass
class _Folder:
    """The files of one folder of train/ or test/, whatever the depth."""

    images: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)  # files that are no images, by suffix

    def __bool__(self) -> bool:
        return bool(self.images or self.left_out)


def list_folder(root: Path) -> tuple[list[str], Listing, Listing]:
    """List (classes, train, test) of the tree at `root`.

    test/ is the test set if it has any class of train/; val/ stands in if test/ is missing or has none of them, as
    Tiny-ImageNet's unlabelled one, and the log says so. Raises ValueError that names the folder that is wrong.
    """
    _check_layout(root)
    train, others = _scan(root / "train")
    if not train:
        raise refusal(root / "train", f"has no folders of classes; data.root should hold {LAYOUT}")
    for name, folder in train.items():
        if not folder.images:
            raise refusal(root / "train" / name, f"{_no_images(folder.left_out)}; add some or remove the folder")
    test, others_of_test = _test_set(root, list(train))
    others += sum((folder.left_out for folder in (*train.values(), *test.values())), others_of_test)
    if others:
        log.info("data.root: %s: left out %s", shown(root), _counted(others))
    return list(train), _labelled(train, list(train)), _labelled(test, list(train))


def _check_layout(root: Path) -> None:
    """Raise ValueError unless root has a train/ and a test/ or val/; it says what may be meant instead."""
    if not root.is_dir():
        problem = "is a file; unpack it and name the folder" if root.exists() else "there is no such folder"
        raise refusal(root, f"{problem} (it should hold {LAYOUT})")
    try:
        names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not _is_hidden(entry.name))
    except OSError as error:
        raise refusal(root, reason(error)) from error
    for wanted, others in _MEANT.items():
        alike = _alike(wanted, names)
        if wanted in names or (wanted == "test" and "val" in names and not alike):
            continue
        meant = alike or [name for name in names if name.casefold() in others]
        place = "val" if meant and "val" in meant[0].casefold() else wanted
        hint = f"rename {shown(meant[0])}/ if it is meant to be {place}/" if meant else f"it holds {_some(names)}"
        missing = "train/" if wanted == "train" else "test/ or val/"
        raise refusal(root, f"has no {missing} ({hint}); it should hold {LAYOUT}")


def _test_set(root: Path, classes: list[str]) -> tuple[dict[str, _Folder], Counter[str]]:
    """Scan test/ or val/; ValueError if that one has an unknown class or neither has a class of train/."""
    known, why = f"{len(classes)} classes: {_some(classes)}", ""
    for part in (root / "test", root / "val"):
        if part.is_symlink() and not part.exists():
            raise refusal(part, f"is a link to {shown(os.readlink(part))}, which cannot be found")
        if not part.is_dir():
            why = f"{part.name}/ is missing" + (f" and {why}" if why else "")
            continue
        scanned, others = _scan(part)
        found = {name: folder for name, folder in scanned.items() if folder}
        unknown = [name for name in found if name not in classes]
        if unknown and (len(unknown) < len(found) or any(_alike(name, classes) for name in unknown)):
            hint = next(filter(None, (_near(name, classes) for name in unknown)), "")
            raise refusal(part / unknown[0], f"is no class of train/, which has {known}{hint}; rename or remove it")
        if found and not unknown:
            if why:
                log.warning("data.root: %s: val/ is the test set, for %s", shown(root), why)
            _check_test(part, found, classes)
            return found, others
        why = f"{part.name}/ has no class of train/ (it holds {_some(found)})" + (f" and {why}" if why else "")
    raise refusal(root, f"{why}; train/ has {known}; it should hold {LAYOUT}")


def _check_test(part: Path, found: dict[str, _Folder], classes: list[str]) -> None:
    """Raise ValueError if there are no images at all, and warn of classes that have none."""
    lacking = [name for name in classes if name not in found or not found[name].images]
    if len(lacking) == len(classes):
        raise refusal(part, _no_images(sum((folder.left_out for folder in found.values()), Counter[str]())))
    if lacking:
        missing = f"no images of {len(lacking)} of the {len(classes)} classes of train/ ({_some(lacking)})"
        log.warning("data.root: %s: has %s", shown(part), missing)


def _labelled(part: dict[str, _Folder], classes: list[str]) -> Listing:
    label = {name: i for i, name in enumerate(classes)}
    return [(path, label[name]) for name, folder in part.items() for path in folder.images]


def _no_images(left_out: Counter[str]) -> str:
    held = f", but {_counted(left_out)}" if left_out else ""
    return f"has no images{held} (their names end in {', '.join(SUFFIXES)})"


def _scan(part: Path) -> tuple[dict[str, _Folder], Counter[str]]:
    """The visible folders of `part` by name, sorted, and the files beside them by suffix."""
    files, folders = _entries(str(part))
    beside = Counter(kind for kind in map(_suffix_left_out, files) if kind)
    beside.update(f"{_suffix(name)} beside the classes" for name in files if _is_image(name))
    found = {}
    for name in folders:
        folder = found[name] = _Folder()
        for place, names in sorted(_walk(os.path.join(part, name), ())):
            folder.images += [os.path.join(place, image) for image in names if _is_image(image)]
            folder.left_out.update(kind for kind in map(_suffix_left_out, names) if kind)
    return found, beside


def _walk(place: str, above: tuple[str, ...]) -> Iterator[tuple[str, list[str]]]:
    """Yield (folder, sorted names of files) of `place` and the visible folders in it; links are followed."""
    here = os.path.realpath(place)
    if here in above:
        raise refusal(place, f"is a link to {shown(here)}, in which it lies")
    files, folders = _entries(place)
    yield place, files
    for name in folders:
        yield from _walk(os.path.join(place, name), (*above, here))


def _entries(place: str) -> tuple[list[str], list[str]]:
    """Sorted names of the files and of the visible folders in `place`."""
    files, folders = [], []
    try:
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.is_symlink() and not os.path.exists(entry.path) and not _is_hidden(entry.name):
                    raise refusal(entry.path, f"is a link to {shown(os.readlink(entry.path))}, which cannot be found")
                if not entry.is_dir():
                    files.append(entry.name)
                elif not _is_hidden(entry.name):
                    folders.append(entry.name)
    except OSError as error:
        raise refusal(place, reason(error)) from error
    return sorted(files), sorted(folders)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in _HIDDEN


def _is_image(name: str) -> bool:
    return _suffix(name) in SUFFIXES and not _is_hidden(name)


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _suffix_left_out(name: str) -> str:
    """The kind under which a file is counted that is no image; "" if it is one, or hidden and of no account."""
    suffix = _suffix(name)
    if _is_hidden(name):
        return f"hidden {suffix}" if suffix in SUFFIXES else ""
    return "" if suffix in SUFFIXES else suffix or "without suffix"


def _counted(files: Counter[str]) -> str:
    return ", ".join(f"{count} {shown(kind)}" for kind, count in sorted(files.items(), key=lambda pair: -pair[1]))


def _some(names: Iterable[str]) -> str:
    """The first few names."""
    listed = [shown(name) for name in names]
    return ", ".join(listed[:_SHOWN]) + (", …" if len(listed) > _SHOWN else "") or "nothing"


def _alike(name: str, names: Iterable[str]) -> list[str]:
    """Choose those of `names` that differ from `name` in case or in the composition of letters alone."""
    return [other for other in names if other != name and _plain(other) == _plain(name)]


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _near(name: str, classes: list[str]) -> str:
    """A question for what `name` may be meant to be; "" if nothing resembles it."""
    close = _alike(name, classes) or difflib.get_close_matches(name, classes, 1)
    if not close:
        return ""
    same = unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", close[0])
    return f"; did you mean {shown(close[0])}{' (the same letters, composed otherwise)' if same else ''}"
