"""Reading of pixels: one brightness whatever the bits, and otherwise a refusal that names the file."""

from __future__ import annotations

import io
import re
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from flare_dist.data.config import DataConfig
from tests.helpers.images import DEEP, GREY, grey, pixels, png, tiff, tree


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.png", png(DEEP.astype(">u2"), 16, 0)),
        ("a.tif", tiff(DEEP.astype("<u2"), 16, 1)),
        ("a.tiff", tiff(DEEP.astype(">u2"), 16, 1, order=">")),
        ("a.pgm", b"P5\n6 4\n65535\n" + DEEP.astype(">u2").tobytes()),
    ],
)
def test_sixteen_bits_are_as_bright_as_eight(name: str, content: bytes, tmp_path: Path) -> None:
    tree(tmp_path, name, content)
    assert torch.equal(pixels(tmp_path), grey(GREY))
    assert torch.equal(pixels(tmp_path, 65535), grey(GREY))


def test_a_dark_image_stays_dark(tmp_path: Path) -> None:
    """Each by the range of the mode, not by what is brightest in it; a range of its own makes 12 bits white."""
    low = (GREY.astype(np.int64) * 4095 + 127) // 255
    path = tree(tmp_path, "a.png", png(low.astype(">u2"), 16, 0))
    assert pixels(tmp_path).max() <= 16
    assert torch.equal(pixels(tmp_path, 4095), grey(GREY))  # hence not from the cache either
    assert pixels(tmp_path).max() <= 16
    with pytest.raises(
        ValueError, match=rf"^data\.image_range: {path}: has values from \d+ to \d+, not in \[0, 1000\]$"
    ):
        pixels(tmp_path, 1000)


def test_twelve_bits_of_a_tiff_are_their_own_range(tmp_path: Path) -> None:
    values = (np.arange(8, dtype=np.uint16) * 585).reshape(2, 4)  # 0 to 4,095
    pairs = values.reshape(2, 2, 2).astype(np.uint32)
    packed = pairs[..., 0] << 12 | pairs[..., 1]
    content = np.stack([packed >> 16, packed >> 8 & 255, packed & 255], -1).astype(np.uint8).reshape(2, 6)
    data = bytearray(tiff(content, 12, 1))
    struct.pack_into("<I", data, 8 + 2 + 8, 4)  # the width in pixels; six bytes hold four
    tree(tmp_path, "a.tif", bytes(data))
    assert torch.equal(pixels(tmp_path), grey(np.rint(values / 4095 * 255).astype(np.uint8)))


@pytest.mark.parametrize(("mode", "dtype", "kind"), [("I", "<i4", 2), ("I", "<u4", 1), ("F", "<f4", 3)])
def test_images_without_a_range_are_refused(mode: str, dtype: str, kind: int, tmp_path: Path) -> None:
    path = tree(tmp_path, "a.tif", tiff(DEEP.astype(dtype), 32, kind))
    with pytest.raises(
        ValueError, match=rf"^data\.image_range: {path}: is of mode {mode}, whose range the file does not"
    ):
        pixels(tmp_path)
    assert torch.equal(pixels(tmp_path, 65535), grey(GREY))


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -1.0])
def test_values_that_are_no_brightness_are_refused(wrong: float, tmp_path: Path) -> None:
    values = GREY.astype("<f4") / 255
    values[2, 2] = wrong
    path = tree(tmp_path, "a.tif", tiff(values, 32, 3))
    problem = r"has values from .* not in \[0, 1\]" if np.isfinite(wrong) else "has NaN or infinity"
    with pytest.raises(ValueError, match=rf"^data\.image_range: {path}: {problem}$"):
        pixels(tmp_path, 1.0)


def test_the_header_of_a_pgm_names_its_white(tmp_path: Path) -> None:
    """Pillow scales it, so a range would be taken of other values than the file's."""
    low = np.rint(GREY * (4095 / 255)).astype(">u2")
    path = tree(tmp_path, "a.pgm", b"P5 6 4 4095\n" + low.tobytes())
    assert torch.equal(pixels(tmp_path), grey(GREY))
    with pytest.raises(
        ValueError, match=rf"^data\.image_range: {path}: is a PGM, whose header names .*; set it to null$"
    ):
        pixels(tmp_path, 4095)


def test_a_negative_of_sixteen_bits_is_refused(tmp_path: Path) -> None:
    path = tree(tmp_path, "a.tif", tiff(DEEP.astype("<u2"), 16, 1, photometric=0))
    with pytest.raises(ValueError, match=rf"^data\.root: {path}: cannot be read \(its 16 bits are .* negative"):
        pixels(tmp_path)


def test_colours_of_sixteen_bits_are_of_their_whole_range(tmp_path: Path) -> None:
    path = tree(tmp_path, "a.png", png(np.repeat(DEEP[..., None], 3, 2).astype(">u2"), 16, 2))
    assert torch.equal(pixels(tmp_path), grey(GREY))
    with pytest.raises(
        ValueError, match=rf"^data\.image_range: {path}: is of 16-bit colours.* got 4095; set it to null"
    ):
        pixels(tmp_path, 4095)


@pytest.mark.parametrize("image_range", [0, -1, float("nan"), float("inf")])
def test_a_range_is_positive(image_range: float) -> None:
    with pytest.raises(ValueError, match=r"^data\.image_range: out of range, got "):
        DataConfig(image_range=image_range)


@pytest.mark.parametrize(
    ("mode", "name"),
    [("1", "a.png"), ("L", "a.png"), ("LA", "a.png"), ("RGBA", "a.png"), ("P", "a.png"), ("CMYK", "a.jpg"),
     ("YCbCr", "a.tif"), ("L", "a.jfif"), ("RGB", "a.JPE")],
)  # fmt: skip
def test_eight_bits_are_as_pillow_reads_them(mode: str, name: str, tmp_path: Path) -> None:
    """Whatever image_range says; transparency is dropped, and a palette with it brings no warning."""
    options: dict[str, Any] = {"transparency": bytes(range(256))} if mode == "P" else {}
    if not name.endswith((".png", ".tif")):
        options["format"] = "JPEG"
    path = tree(tmp_path, name, Image.fromarray(GREY).convert("RGB").convert(mode), **options)
    with Image.open(path) as image, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = torch.from_numpy(np.asarray(image.convert("RGB")).transpose(2, 0, 1).copy())
    assert torch.equal(pixels(tmp_path), expected)
    assert torch.equal(pixels(tmp_path, 4095), expected)


def test_an_image_is_not_turned(tmp_path: Path) -> None:
    """As torchvision's ImageFolder leaves it, whatever EXIF says."""
    turned = Image.Exif()
    turned[274] = 6
    tree(tmp_path, "a.png", Image.fromarray(GREY), exif=turned)
    assert torch.equal(pixels(tmp_path), grey(GREY))


def with_text() -> bytes:
    """A good image with two megabytes of zipped text, more than Pillow takes."""
    text = PngImagePlugin.PngInfo()
    text.add_text("Raw profile", "x" * 2**21, zip=True)
    buffer = io.BytesIO()
    Image.fromarray(GREY).save(buffer, "PNG", pnginfo=text)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cannot be read (it is of no format that Pillow reads, or empty)"),
        (b"<html>404</html>", "cannot be read (it is of no format"),
        (png(GREY, 8, 0)[:-30], "cannot be read ("),
        (png(GREY, 8, 0, (20000, 5000)), "cannot be read (20000x5000 pixels, Pillow's limit is 89478485 in all)"),
        (png(GREY, 8, 0, (30000, 30000)), "cannot be read (Image size (900000000 pixels) exceeds limit of"),
        (with_text(), "cannot be read (Decompressed data too large"),
    ],
    ids=["empty", "html", "truncated", "huge", "gigantic", "text"],
)
def test_a_bad_image_is_named(content: bytes, said: str, tmp_path: Path) -> None:
    path = tree(tmp_path, "b.png", Image.fromarray(GREY)).with_name("b.png")
    path.write_bytes(content)
    with pytest.raises(ValueError, match="^" + re.escape(f"data.root: {path}: {said}")):
        pixels(tmp_path)
