"""Damaged image files, twelve thousand of them: each is read, or refused in one line that names it.

The damage is drawn from SEED: bits, bytes, lengths and whole blocks of small good files of every kind that we read. In
half of the PNGs the checksums are mended afterwards, or nearly all damage would stop at them.
"""

from __future__ import annotations

import io
import random
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from flare_dist.data.config import DataConfig
from flare_dist.data.datasets import load
from flare_dist.data.pixels import ImageSpec, read_image

SEED = 20180718
COUNT = 12_000
END_TO_END = 60  # of them are read as part of a data set, which takes longer
SIZE = 12
EXTREMES = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]


def good_files() -> list[bytes]:
    """Make small good files of every kind that we read, and of one (GIF) that is often named as another."""
    grey = np.random.default_rng(SEED).integers(0, 65536, (SIZE, SIZE), dtype=np.uint16)
    image = Image.fromarray((grey >> 8).astype(np.uint8))
    colours = image.convert("RGB")
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "a stranger's " * 20, zip=True)
    text.add_itxt("Title", "stripes", "en", "Streifen", zip=True)
    turned = Image.Exif()
    turned[274] = 6
    saved: list[tuple[Image.Image, str, dict[str, object]]] = [
        (image, "PNG", {}),
        (colours, "PNG", {"pnginfo": text}),
        (colours.convert("RGBA"), "PNG", {"exif": turned}),
        (colours.convert("P"), "PNG", {"transparency": bytes(range(256))}),
        (image.convert("1"), "PNG", {}),
        (image.convert("LA"), "PNG", {}),
        (Image.fromarray(grey), "PNG", {}),
        (image, "JPEG", {}),
        (colours, "JPEG", {"progressive": True, "exif": turned}),
        (colours.convert("CMYK"), "JPEG", {}),
        (colours, "TIFF", {}),
        (colours, "TIFF", {"compression": "tiff_lzw"}),
        (colours.convert("YCbCr"), "TIFF", {}),
        (Image.fromarray(grey), "TIFF", {"compression": "tiff_adobe_deflate"}),
        (Image.fromarray(grey.astype(np.float32)), "TIFF", {}),
        (image, "BMP", {}),
        (colours, "BMP", {}),
        (colours, "PPM", {}),
        (Image.fromarray(grey.astype(np.int32)), "PPM", {}),
        (colours, "WEBP", {}),
        (colours, "WEBP", {"lossless": True, "exif": turned}),
        (colours, "GIF", {}),
    ]
    files = []
    for picture, format_, options in saved:
        buffer = io.BytesIO()
        picture.save(buffer, format_, **options)
        files.append(buffer.getvalue())
    return [*files, b"P3 2 1 255\n" + b"9 8 7 " * 2, b"P5\n12 12\n4095\n" + (grey >> 4).astype(">u2").tobytes()]


def flip_bits(content: bytearray, rng: random.Random) -> None:
    for _ in range(rng.randint(1, 8)):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def overwrite(content: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(content))
    for place in range(start, min(len(content), start + rng.randint(1, 16))):
        content[place] = rng.randrange(256)


def overwrite_header(content: bytearray, rng: random.Random) -> None:
    for _ in range(rng.randint(1, 3)):
        content[rng.randrange(min(64, len(content)))] = rng.randrange(256)


def write_extreme(content: bytearray, rng: random.Random) -> None:
    """Write a number that a decoder may take for a length, an offset or a size."""
    start = rng.randrange(max(1, len(content) - 4))
    layout = rng.choice(["<I", ">I", "<H", ">H"])
    value = rng.choice(EXTREMES) & (0xFFFFFFFF if layout[1] == "I" else 0xFFFF)
    number = struct.pack(layout, value)
    content[start : start + len(number)] = number


def truncate(content: bytearray, rng: random.Random) -> None:
    del content[rng.randrange(len(content)) :]


def cut_out(content: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(content))
    del content[start : start + rng.randint(1, 32)]


def insert(content: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(content))
    content[start:start] = rng.randbytes(rng.randint(1, 32))


def repeat(content: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(content))
    content[start:start] = content[start : start + rng.randint(1, 64)]


def blank(content: bytearray, rng: random.Random) -> None:
    start, length = rng.randrange(len(content)), rng.randint(1, 64)
    content[start : start + length] = bytes([rng.choice([0, 255])]) * min(length, len(content) - start)


DAMAGES: list[Callable[[bytearray, random.Random], None]] = [
    flip_bits,
    overwrite,
    overwrite_header,
    write_extreme,
    truncate,
    cut_out,
    insert,
    repeat,
    blank,
]


def damaged(files: list[bytes], rng: random.Random) -> bytes:
    """Damage one of `files` in one to three ways; now and then its tail is that of another."""
    content = bytearray(rng.choice(files))
    for damage in rng.choices(DAMAGES, k=rng.randint(1, 3)):
        if content:
            damage(content, rng)
    if rng.random() < 0.05:
        other = rng.choice(files)
        content[len(content) // 2 :] = other[len(other) // 2 :]
    return mend_checksums(bytes(content)) if rng.random() < 0.5 else bytes(content)


def mend_checksums(content: bytes) -> bytes:
    """Make the checksums of a PNG agree, as far as its chunks can be followed."""
    mended, place = bytearray(content), 8
    while content.startswith(b"\x89PNG") and place + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, place)
        end = place + 8 + length
        if end + 4 > len(content):
            break
        struct.pack_into(">I", mended, end, zlib.crc32(content[place + 4 : end]))
        place = end + 4
    return bytes(mended)


def test_damaged_images_are_read_or_refused_by_name(tmp_path: Path) -> None:
    files, rng = good_files(), random.Random(SEED)
    path = tmp_path / "caf\u00e9 7.png"  # the suffix need not be true; Pillow looks at the content
    outcomes = {"read": 0, "refused": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as decoding a data set does
        for i in range(COUNT):
            path.write_bytes(damaged(files, rng))
            try:
                image = read_image(str(path))
            except ValueError as error:
                message = str(error)
                assert message.startswith((f"data.root: {path}: ", f"data.image_range: {path}: ")), (i, message)
                assert message.isprintable(), (i, message)
                assert len(message) < len(str(path)) + 250, (i, message)
                outcomes["refused"] += 1
            else:
                assert image.dtype == np.uint8, i
                assert image.shape[0] == 3, i
                assert image.size > 0, i
                outcomes["read"] += 1
    assert min(outcomes.values()) > COUNT // 10, outcomes


def test_a_damaged_image_in_a_data_set_is_named(tmp_path: Path) -> None:
    """Not only the reader, but all that stands between it and the user; with warnings as errors."""
    files, rng = good_files(), random.Random(SEED + 1)
    for part in ("train", "test"):
        (tmp_path / part / "one").mkdir(parents=True)
        Image.new("RGB", (SIZE, SIZE)).save(tmp_path / part / "one" / "a.png")
    path = tmp_path / "train" / "one" / "b.png"
    refused = 0
    for i in range(END_TO_END):
        path.write_bytes(damaged(files, rng))
        problem = ""
        try:
            load(DataConfig(name="image_folder", root=str(tmp_path)), seed=0)
        except ValueError as error:
            problem = str(error)
            refused += 1
        assert str(path) in problem or not problem, (i, problem)
    assert refused


@pytest.mark.parametrize("place", range(24))
def test_good_images_are_read(place: int, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(good_files()[place])
    if place == 14:
        with pytest.raises(ValueError, match=r"^data\.image_range: .*a\.png: is of mode F"):
            read_image(str(path))
    image = read_image(str(path), ImageSpec(65535 if place == 14 else None))
    assert image.shape[0] == 3
