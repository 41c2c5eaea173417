"""Trees of image files, root/train/<class>/* and root/test/<class>/*, decoded once into one uint8 array.

`folders.py` and `sites.py` list the files, `pixels.py` reads one of them, `groups.py` reads to whom they belong.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from flare_dist.data.cache import cached_array
from flare_dist.data.examples import Examples
from flare_dist.data.folders import Listing, Tree, list_folder
from flare_dist.data.groups import number_groups, read_groups
from flare_dist.data.pixels import AS_THEY_ARE, ImageSpec, read_image
from flare_dist.data.sites import list_sites
from flare_dist.errors import printable, reason, refusal
from flare_dist.progress import Steps

log = logging.getLogger(__name__)

_DECODING = "rgb 3"  # part of the cache's fingerprint: change it if the same files are to become other pixels
_BLOCK = 256  # images decoded by one task
_THREADED_BYTES = 8192  # mean file size from which threads pay; below it they only fight over the interpreter lock
_DARK = 64  # the white of 14 bits of 16


def classes(root: Path) -> Tree:
    """List one tree, with the groups in root/groups.csv, if it has that table."""
    tree = list_folder(root)
    train, test = read_groups(root, [path for path, _ in tree.train], [path for path, _ in tree.test])
    return tree._replace(train_groups=train, test_groups=test)


LAYOUTS: dict[str, Callable[[Path], Tree]] = {"classes": classes, "sites": list_sites}


def load_folder(
    root: Path, spec: ImageSpec = AS_THEY_ARE, layout: str = "classes"
) -> tuple[Examples, Examples, list[str]]:
    """Load (train, test, names of the classes) of the tree at `root`; `layout` is a key of LAYOUTS.

    Raises ValueError that names `data.root` and the path for a wrong layout, an unreadable image or images of different
    sizes.
    """
    tree = LAYOUTS[layout](root)
    train = _decoded(root, "train", tree.train, tree.train_groups, spec)
    test = _decoded(root, "test", tree.test, tree.test_groups, spec)
    if train.inputs.shape[1:] != test.inputs.shape[1:]:
        raise _sizes_differ(tree.test[0][0], test.inputs[0].shape, tree.train[0][0], train.inputs[0].shape)
    brightest = int(train.inputs.max())
    if spec.image_range is None and brightest <= _DARK:
        log.warning(
            "data.root: %s: the brightest value in train/ is %d of 255; if its files have 16 bits of which not all are "
            "used, set data.image_range to the value that is white, 4095 of 12 bits",
            printable(root),
            brightest,
        )
    return train, test, [printable(name) for name in tree.classes]


def _decoded(root: Path, name: str, listing: Listing, groups: Sequence[str] | None, spec: ImageSpec) -> Examples:
    paths = [path for path, _ in listing]
    facts = [_file(path) for path in paths]
    mean_bytes = sum(fact.st_size for fact in facts) / len(facts)
    fingerprint = hashlib.blake2b(f"{_DECODING} {tuple(spec)}".encode(), digest_size=16)
    inside = len(str(root))  # a data set that was moved is still the same
    for path, fact in zip(paths, facts):
        fingerprint.update(os.fsencode(f"{path[inside:]}|{fact.st_size}|{fact.st_mtime_ns}\n"))
    threaded = mean_bytes >= _THREADED_BYTES
    pixels = cached_array(root, name, fingerprint.hexdigest(), lambda: decode(paths, threaded, spec))
    codes, names = number_groups(groups)
    labels = torch.tensor([label for _, label in listing])
    return Examples(torch.from_numpy(pixels), labels, codes, group_names=names)


def _file(path: str) -> os.stat_result:
    try:
        fact = os.stat(path)
    except OSError as error:
        raise refusal("data.root", path, reason(error)) from error
    if not stat.S_ISREG(fact.st_mode):  # reading a pipe would wait for ever
        raise refusal("data.root", path, "is not a file")
    return fact


def decode(paths: Sequence[str], threaded: bool, spec: ImageSpec = AS_THEY_ARE) -> np.ndarray:
    """Decode the images at `paths` in order: uint8 [n, C, H, W]; ValueError names the first that has another size."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's of damaged metadata; damaged pixels we refuse ourselves
        return _fill(paths, threaded, spec)


def _fill(paths: Sequence[str], threaded: bool, spec: ImageSpec) -> np.ndarray:
    images = _room(len(paths), paths[0], read_image(paths[0], spec).shape)

    def fill(start: int) -> int:
        block = paths[start : start + _BLOCK]
        for i, path in enumerate(block, start):
            image = read_image(path, spec)
            if image.shape != images.shape[1:]:
                raise _sizes_differ(path, image.shape, paths[0], images.shape[1:])
            images[i] = image
        return len(block)

    pool = ThreadPoolExecutor(os.cpu_count() if threaded else 1)
    try:
        with Steps("decoding images", len(paths)) as shown:
            for count in pool.map(fill, range(0, len(paths), _BLOCK)):
                shown.advance(count, count * images[0].nbytes)
    finally:
        pool.shutdown(cancel_futures=True)
    return images


def _room(count: int, first: str, shape: Sequence[int]) -> np.ndarray:
    try:
        return np.empty((count, *shape), np.uint8)
    except MemoryError as error:
        size = f"{shape[2]}x{shape[1]}"
        problem = f"{count} images of its size, {size}, do not fit into memory ({error}); set data.image_size to less"
        raise refusal("data.root", first, problem) from error


def _sizes_differ(path: str, shape: Sequence[int], first: str, expected: Sequence[int]) -> ValueError:
    sizes = f"is {shape[2]}x{shape[1]}, but {printable(first)} is {expected[2]}x{expected[1]}"
    remedy = f"set data.image_size to one number or [height, width], e.g. [{expected[1]}, {expected[2]}]"
    return refusal("data.root", path, f"{sizes}; all images must have one size, {remedy}")
