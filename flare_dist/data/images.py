"""Trees of image files, root/train/<class>/* and root/test/<class>/*, decoded once into one uint8 array.

`folders.py` lists the files, `pixels.py` reads one of them, `groups.py` reads to whom they belong.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flare_dist.data.cache import cached_array
from flare_dist.data.examples import Examples
from flare_dist.data.folders import Listing, list_folder
from flare_dist.data.groups import read_groups
from flare_dist.data.pixels import read_image
from flare_dist.errors import printable, reason, refusal

log = logging.getLogger(__name__)

_DECODING = "rgb 2"  # part of the cache's fingerprint: change it if the same files are to become other pixels
_BLOCK = 256  # images decoded by one task
_THREADED_BYTES = 8192  # mean file size from which threads pay; below it they only fight over the interpreter lock
_DARK = 64  # the white of 14 bits of 16
_PATIENCE_SECONDS = 2.0  # shorter work shows no progress bar


def load_folder(root: Path, image_range: float | None = None) -> tuple[Examples, Examples, list[str]]:
    """Load (train, test, names of the classes) of the tree at `root`; natural groups come from root/groups.csv, if any.

    `image_range` is the value that is white in grey images of more than 8 bits; None = the most that their mode holds.
    Raises ValueError that names `data.root` and the path for a wrong layout, an unreadable image or images of different
    sizes.
    """
    classes, train, test = list_folder(root)
    groups = read_groups(root, [path for path, _ in train])
    learn = _decoded(root, "train", train, groups, image_range)
    judge = _decoded(root, "test", test, None, image_range)
    if learn.inputs.shape[1:] != judge.inputs.shape[1:]:
        raise _sizes_differ(test[0][0], judge.inputs[0].shape, train[0][0], learn.inputs[0].shape)
    brightest = int(learn.inputs.max())
    if image_range is None and brightest <= _DARK:
        log.warning(
            "data.root: %s: the brightest value in train/ is %d of 255; if its files have 16 bits of which not all are "
            "used, set data.image_range to the value that is white, 4095 of 12 bits",
            printable(root),
            brightest,
        )
    return learn, judge, classes


def _decoded(root: Path, name: str, listing: Listing, groups: Tensor | None, image_range: float | None) -> Examples:
    paths = [path for path, _ in listing]
    facts = [_file(path) for path in paths]
    mean_bytes = sum(fact.st_size for fact in facts) / len(facts)
    fingerprint = hashlib.blake2b(f"{_DECODING} {image_range}".encode(), digest_size=16)
    inside = len(str(root))  # a data set that was moved is still the same
    for path, fact in zip(paths, facts):
        fingerprint.update(os.fsencode(f"{path[inside:]}|{fact.st_size}|{fact.st_mtime_ns}\n"))
    threaded = mean_bytes >= _THREADED_BYTES
    pixels = cached_array(root, name, fingerprint.hexdigest(), lambda: decode(paths, threaded, image_range))
    return Examples(torch.from_numpy(pixels), torch.tensor([label for _, label in listing]), groups)


def _file(path: str) -> os.stat_result:
    try:
        fact = os.stat(path)
    except OSError as error:
        raise refusal("data.root", path, reason(error)) from error
    if not stat.S_ISREG(fact.st_mode):  # reading a pipe would wait for ever
        raise refusal("data.root", path, "is not a file")
    return fact


def decode(paths: Sequence[str], threaded: bool, image_range: float | None = None) -> np.ndarray:
    """Decode the images at `paths` in order: uint8 [n, 3, H, W]; ValueError names the first that has another size."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's of damaged metadata; damaged pixels we refuse ourselves
        return _fill(paths, threaded, image_range)


def _fill(paths: Sequence[str], threaded: bool, image_range: float | None) -> np.ndarray:
    from rich.console import Console
    from rich.progress import Progress

    images = _room(len(paths), paths[0], read_image(paths[0], image_range).shape)

    def fill(start: int) -> int:
        for i, path in enumerate(paths[start : start + _BLOCK], start):
            image = read_image(path, image_range)
            if image.shape != images.shape[1:]:
                raise _sizes_differ(path, image.shape, paths[0], images.shape[1:])
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


def _room(count: int, first: str, shape: Sequence[int]) -> np.ndarray:
    try:
        return np.empty((count, *shape), np.uint8)
    except MemoryError as error:
        problem = (
            f"{count} images of its size, {shape[2]}x{shape[1]}, do not fit into memory ({error}); make them smaller"
        )
        raise refusal("data.root", first, problem) from error


def _sizes_differ(path: str, shape: Sequence[int], first: str, expected: Sequence[int]) -> ValueError:
    sizes = f"is {shape[2]}x{shape[1]}, but {printable(first)} is {expected[2]}x{expected[1]}"
    return refusal("data.root", path, f"{sizes}; all images must have one size")
