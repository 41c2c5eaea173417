"""Scan of train/ or test/ of a tree of images: which files of each class are images, and what else lies there.

The order is that of torchvision's ImageFolder: classes and files sorted, folders within a class included. Hidden
folders and files, which notebooks, NAS boxes and archives from a Mac leave behind, belong to no class.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from flare_dist.errors import printable, reason, refusal

SUFFIXES = (".bmp", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
# Hidden although the name does not begin with a dot.
_HIDDEN = {"__MACOSX", "@eaDir", "#recycle", "@Recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"}


@dataclass
class ClassFolder:
    """Hold the files of one class in train/ or test/, at any depth."""

    images: list[str] = field(default_factory=list)  # paths, in the order of a walk
    left_out: Counter[str] = field(default_factory=Counter)  # files that are no images, by suffix

    def __bool__(self) -> bool:
        return bool(self.images or self.left_out)


def scan(part: Path) -> tuple[dict[str, ClassFolder], Counter[str]]:
    """Return the visible folders of `part` by name, sorted, and the number of files beside them by suffix.

    Raises ValueError that names a link without a target, a link to a folder around it, or what cannot be read.
    """
    files, folders = _entries(str(part))
    beside = Counter(kind for kind in map(_suffix_left_out, files) if kind)
    beside.update(f"{_suffix(name)} beside the classes" for name in files if _is_image(name))
    found = {}
    for name in folders:
        folder = found[name] = ClassFolder()
        for place, names in sorted(walk(os.path.join(part, name))):
            folder.images += [os.path.join(place, image) for image in names if _is_image(image)]
            folder.left_out.update(kind for kind in map(_suffix_left_out, names) if kind)
    return found, beside


def walk(place: str, above: tuple[str, ...] = ()) -> Iterator[tuple[str, list[str]]]:
    """Yield (folder, sorted names of files) of `place` and the visible folders in it; links are followed.

    `above` are the real paths of the folders in which it lies, for links back to them are refused.
    """
    here = os.path.realpath(place)
    if here in above:
        raise refusal("data.root", place, f"is a link to {printable(here)}, in which it lies")
    files, folders = _entries(place)
    yield place, files
    for name in folders:
        yield from walk(os.path.join(place, name), (*above, here))


def _entries(place: str) -> tuple[list[str], list[str]]:
    """Return the sorted names of the files and of the visible folders in `place`."""
    files = []
    folders = []
    try:
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.is_symlink() and not os.path.exists(entry.path) and not is_hidden(entry.name):
                    raise broken_link(entry.path)
                if not entry.is_dir():
                    files.append(entry.name)
                elif not is_hidden(entry.name):
                    folders.append(entry.name)
    except OSError as error:
        raise refusal("data.root", place, reason(error)) from error
    return sorted(files), sorted(folders)


def broken_link(path: str | Path) -> ValueError:
    """Make the error of a link whose target is not there."""
    return refusal("data.root", path, f"is a link to {printable(os.readlink(path))}, which cannot be found")


def is_hidden(name: str) -> bool:
    """Tell whether a file or folder of this name belongs to no class."""
    return name.startswith(".") or name in _HIDDEN


def _is_image(name: str) -> bool:
    return _suffix(name) in SUFFIXES and not is_hidden(name)


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _suffix_left_out(name: str) -> str:
    """Return the kind under which a file is counted that is no image; "" for images and for other hidden files."""
    suffix = _suffix(name)
    if is_hidden(name):
        return f"hidden {suffix}" if suffix in SUFFIXES else ""
    return "" if suffix in SUFFIXES else suffix or "without suffix"


def count_in_words(files: Counter[str]) -> str:
    """List kinds of files with their numbers, the most frequent first, as in "2 .gif, 1 .npy"."""
    ordered = sorted(files.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{count} {printable(kind)}" for kind, count in ordered)
