"""Trees of images on the disk, and images as bytes."""

from __future__ import annotations

import re
import shutil
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from flare_dist.data.config import DataConfig
from flare_dist.data.datasets import DataSplits, load
from flare_dist.data.examples import Examples

EACH = {"train": 3, "test": 2, "val": 1}  # images of a class


def write_parts(tmp_path: Path) -> Path:
    """Write two classes in train/, test/ and val/: 6, 4 and 2 images."""
    for part, count in EACH.items():
        for name in ("hor", "ver"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                Image.new("L", (3, 2), 10 * i).save(tmp_path / part / name / f"{i}.png")
    return tmp_path


def read(root: Path) -> DataSplits:
    """Load a tree of images."""
    return load(DataConfig(name="image_folder", root=str(root)), seed=0)


def copy(root: Path, place: str) -> None:
    """Add one more image."""
    (root / place).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(root / "train/hor/0.png", root / place)


def refused(root: Path, place: str, problem: str) -> None:
    """Expect an error that names `place`."""
    path = re.escape(str(root / place if place else root))
    with pytest.raises(ValueError, match=rf"^data\.root: {path}: {problem}"):
        read(root)


GREY = np.random.default_rng(0).integers(0, 256, (4, 6), dtype=np.uint8)

DEEP = GREY.astype(np.uint16) * 257  # 255 becomes 65,535


def tree(root: Path, name: str, image: Image.Image | bytes, **options: Any) -> Path:
    """Write a data set of one image in each part; returns the path of the training image."""
    for part in ("train", "test"):
        (root / part / "one").mkdir(parents=True, exist_ok=True)
        path = root / part / "one" / name
        if isinstance(image, bytes):
            path.write_bytes(image)
        else:
            image.save(path, **options)
    return root / "train" / "one" / name


def pixels(root: Path, image_range: float | None = None) -> Tensor:
    """Read the training image of `tree`, without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inputs = load(DataConfig(name="image_folder", root=str(root), image_range=image_range), seed=0).train.inputs
    assert inputs.dtype == torch.uint8
    return inputs[0]


def grey(values: np.ndarray) -> Tensor:
    """Repeat grey values in three channels."""
    return torch.from_numpy(np.broadcast_to(values, (3, *values.shape)).copy())


def tiff(values: np.ndarray, bits: int, kind: int, photometric: int = 1, order: str = "<") -> bytes:
    """Make an uncompressed TIFF of one channel: `kind` 1 unsigned, 2 signed, 3 float."""
    data = values.tobytes()
    entries = [
        (256, values.shape[-1]), (257, values.shape[0]), (258, bits), (259, 1), (262, photometric),
        (273, 8 + 2 + 12 * 10 + 4), (277, 1), (278, values.shape[0]), (279, len(data)), (339, kind),
    ]  # fmt: skip
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(entries))
    body = b"".join(struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in entries)
    return head + body + struct.pack(order + "I", 0) + data


def png(rows: np.ndarray, bits: int, colour: int, size: tuple[int, int] | None = None) -> bytes:
    """Make a PNG of `rows` [H, W, ...]; `size` (width, height) may be another than that."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    width, height = size or (rows.shape[1], rows.shape[0])
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def equal(a: Examples, b: Examples) -> bool:
    return torch.equal(a.inputs, b.inputs) and torch.equal(a.labels, b.labels)


def write_tree(root: Path, size: tuple[int, int] = (6, 4), each: int = 3) -> dict[str, np.ndarray]:
    """A folder of PNGs (lossless, so that pixels can be compared) of three classes; pixels by relative path."""
    rng = np.random.default_rng(0)
    pixels = {}
    for part in ("train", "test"):
        for name in ("ant", "bee", "cow"):
            (root / part / name).mkdir(parents=True)
            for i in range(each):
                path = f"{part}/{name}/{i}.png"
                pixels[path] = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
                Image.fromarray(pixels[path]).save(root / path)
    return pixels
