"""Trees of image files, root/train/<class>/* and root/test/<class>/*, decoded once into one uint8 array.

Listing follows torchvision's ImageFolder: classes and files in sorted order, every image read as RGB.
"""

from __future__ import annotations

import csv
import hashlib
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flare_dist.data.cache import cached_array
from flare_dist.data.examples import Examples

LAYOUT = "train/<class>/*.jpg and test/<class>/*.jpg (or val/<class>/*.jpg)"
_BLOCK = 256  # images decoded by one task
_THREADED_BYTES = 8192  # mean file size from which threads pay; below it they only fight over the interpreter lock
_PATIENCE_SECONDS = 2.0  # shorter work shows no progress bar

Listing = list[tuple[str, int]]  # (path, label)


def load_folder(root: Path) -> tuple[Examples, Examples, int]:
    """(train, test, number of classes) of the tree at `root`; natural groups come from root/groups.csv if it exists.

    Raises ValueError that names `data.root` for a wrong layout, an unreadable image or images of different sizes.
    """
    classes, train, test = _listings(root)
    learn = _decoded(root, "train", train, _groups(root, [path for path, _ in train]))
    judge = _decoded(root, "test", test, None)
    if learn.inputs.shape[1:] != judge.inputs.shape[1:]:
        raise ValueError(_sizes_differ(test[0][0], judge.inputs[0].shape, train[0][0], learn.inputs[0].shape))
    return learn, judge, len(classes)


def _listings(root: Path) -> tuple[list[str], Listing, Listing]:
    from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

    try:
        classes, index = find_classes(str(root / "train"))
        train = make_dataset(str(root / "train"), index, IMG_EXTENSIONS)
    except FileNotFoundError as error:
        raise ValueError(f"data.root: {root} should hold {LAYOUT}: {error}") from error
    # The first that has our classes: Tiny-ImageNet's own test/ is unlabelled, its val/ is what papers report.
    for folder in (root / "test", root / "val"):
        names = {entry.name for entry in os.scandir(folder) if entry.is_dir()} if folder.is_dir() else set()
        if names and names <= set(classes):
            test = make_dataset(str(folder), index, IMG_EXTENSIONS, allow_empty=True)
            if test:
                return classes, train, test
    raise ValueError(f"data.root: {root} should hold {LAYOUT}: no test/ or val/ with images in the classes of train/")


def _groups(root: Path, paths: Sequence[str]) -> Tensor | None:
    """Codes 0, 1, … for the group names of `paths`, in sorted order of the names."""
    table = root / "groups.csv"
    if not table.exists():
        return None
    with table.open(newline="") as file:
        named = {row[0].strip(): row[1].strip() for row in csv.reader(file) if len(row) >= 2}
    keys = [Path(path).relative_to(root).as_posix() for path in paths]
    missing = next((key for key in keys if key not in named), None)
    if missing is not None:
        raise ValueError(f"data.root: {table} has no line '{missing},<group>'")
    return torch.from_numpy(np.unique([named[key] for key in keys], return_inverse=True)[1].astype(np.int64))


def _decoded(root: Path, name: str, listing: Listing, groups: Tensor | None) -> Examples:
    paths = [path for path, _ in listing]
    facts = [os.stat(path) for path in paths]
    mean_bytes = sum(fact.st_size for fact in facts) / len(facts)
    fingerprint = hashlib.blake2b(b"rgb 1", digest_size=16)  # change the tag when the way of decoding changes
    inside = len(str(root))  # a data set that was moved is still the same
    for path, fact in zip(paths, facts):
        fingerprint.update(f"{path[inside:]}|{fact.st_size}|{fact.st_mtime_ns}\n".encode())
    pixels = cached_array(root, name, fingerprint.hexdigest(), lambda: decode(paths, mean_bytes >= _THREADED_BYTES))
    return Examples(torch.from_numpy(pixels), torch.tensor([label for _, label in listing]), groups)


def decode(paths: Sequence[str], threaded: bool) -> np.ndarray:
    """uint8 [n, 3, H, W], the images at `paths` in order; ValueError names the first that has another size."""
    from rich.console import Console
    from rich.progress import Progress

    height, width = _pixels(paths[0]).shape[1:]
    images = np.empty((len(paths), 3, height, width), np.uint8)

    def fill(start: int) -> int:
        for i, path in enumerate(paths[start : start + _BLOCK], start):
            image = _pixels(path)
            if image.shape[1:] != (height, width):
                raise ValueError(_sizes_differ(path, image.shape, paths[0], images.shape[1:]))
            images[i] = image
        return min(start + _BLOCK, len(paths))

    began = time.monotonic()
    progress = Progress(console=Console(stderr=True), transient=True)
    task = progress.add_task(f"decoding {len(paths)} images", total=len(paths))
    pool = ThreadPoolExecutor(os.cpu_count() if threaded else 1)
    try:
        for done in pool.map(fill, range(0, len(paths), _BLOCK)):
            progress.update(task, completed=done)
            if not progress.live.is_started and time.monotonic() - began > _PATIENCE_SECONDS:
                progress.start()
    finally:
        pool.shutdown(cancel_futures=True)
        if progress.live.is_started:
            progress.stop()
    return images


def _sizes_differ(path: str, shape: Sequence[int], first: str, expected: Sequence[int]) -> str:
    return (
        f"data.root: all images must have one size, but {path} is {shape[2]}x{shape[1]} "
        f"and {first} is {expected[2]}x{expected[1]}"
    )


def _pixels(path: str) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    except (OSError, SyntaxError) as error:  # Pillow's own for damaged files; SyntaxError from a broken PNG
        raise ValueError(f"data.root: cannot read {path} ({error})") from error
