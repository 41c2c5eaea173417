"""Reading of pixels: one brightness whatever the bits, and otherwise a refusal that names the file."""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from torchvision.transforms import Resize

from flare_dist.data.config import DataConfig
from flare_dist.data.pixels import ImageSpec, read_image
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
    """Whatever image_range says; alpha that hides nothing changes nothing."""
    options = {} if name.endswith((".png", ".tif")) else {"format": "JPEG"}
    path = tree(tmp_path, name, Image.fromarray(GREY).convert("RGB").convert(mode), **options)
    with Image.open(path) as image:
        expected = torch.from_numpy(np.asarray(image.convert("RGB")).transpose(2, 0, 1).copy())
    assert torch.equal(pixels(tmp_path), expected)
    assert torch.equal(pixels(tmp_path, 4095), expected)


ALPHA = (np.arange(24).reshape(4, 6) * 11).astype(np.uint8)  # from 0, hidden, to 253


def with_alpha() -> Image.Image:
    image = Image.fromarray(GREY).convert("LA")
    image.putalpha(Image.fromarray(ALPHA))
    return image


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_what_is_transparent_lies_on_white(mode: str, tmp_path: Path) -> None:
    tree(tmp_path, "a.png", with_alpha().convert(mode))
    share = ALPHA / 255.0
    found = pixels(tmp_path).double().numpy()
    assert np.abs(found - (GREY * share + 255 * (1 - share))).max() <= 1  # Pillow's rounding
    assert (found[:, 0, 0] == 255).all()


def test_a_palette_with_transparency_lies_on_white(tmp_path: Path) -> None:
    palette = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8))
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    tree(tmp_path, "a.png", palette, transparency=bytes([255, 0, 255]))
    assert pixels(tmp_path).permute(1, 2, 0).tolist() == [[[10, 20, 30], [255] * 3], [[70, 80, 90], [255] * 3]]


def test_a_value_that_is_transparent_is_white_in_grey_of_any_depth(tmp_path: Path) -> None:
    shallow = np.array([[1, 2, 3]], np.uint8)
    tree(tmp_path / "8", "a.png", Image.fromarray(shallow), transparency=2)
    tree(tmp_path / "16", "a.png", Image.fromarray(shallow.astype(np.uint16) * 257), transparency=2 * 257)
    assert torch.equal(pixels(tmp_path / "8"), grey(np.array([[1, 255, 3]], np.uint8)))
    assert torch.equal(pixels(tmp_path / "16"), pixels(tmp_path / "8"))
    assert pixels(tmp_path / "16", 771).tolist()[0] == [[85, 255, 255]]


def test_a_colour_of_sixteen_bits_that_is_transparent_is_white(tmp_path: Path) -> None:
    colours = np.array([[[300, 600, 900], [5000, 6000, 7000]]], ">u2")
    content = png(colours, 16, 2)
    key = struct.pack(">4sHHH", b"tRNS", 300, 600, 900)
    chunk = struct.pack(">I", 6) + key + struct.pack(">I", zlib.crc32(key))
    tree(tmp_path, "a.png", content[:33] + chunk + content[33:])
    assert pixels(tmp_path).permute(1, 2, 0).tolist() == [[[255] * 3, [19, 23, 27]]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_as_exif_tells(orientation: int, tmp_path: Path) -> None:
    """Of 8 bits, of 16 and of colours; in TIFF, which Pillow turns itself, too."""
    turns: list[Callable[[np.ndarray], np.ndarray]] = [
        lambda a: a,
        np.fliplr,
        lambda a: np.rot90(a, 2),
        np.flipud,
        np.transpose,
        lambda a: np.rot90(a, -1),
        lambda a: np.rot90(a.T, 2),
        np.rot90,
    ]
    turned = Image.Exif()
    turned[274] = orientation
    expected = grey(np.ascontiguousarray(turns[orientation - 1](GREY)))
    saved = {
        "a.png": Image.fromarray(GREY),
        "b.png": Image.fromarray(DEEP),
        "c.png": Image.fromarray(GREY).convert("P"),
    }
    for name, image in (saved | {"d.tif": Image.fromarray(GREY)}).items():
        path = tree(tmp_path / name, name, image, exif=turned)
        assert torch.equal(torch.from_numpy(read_image(str(path)).copy()), expected), name


def test_damaged_metadata_tell_no_orientation(tmp_path: Path) -> None:
    path = tree(tmp_path, "a.png", Image.fromarray(GREY), exif=b"Exif\0\0II*\0 and so on")
    assert torch.equal(torch.from_numpy(read_image(str(path)).copy()), grey(GREY))


BIG = np.random.default_rng(1).integers(0, 256, (40, 30, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(16, 20), (7, 64), (41, 30)])
def test_resizing_is_that_of_torchvision(size: tuple[int, int], tmp_path: Path) -> None:
    path = tree(tmp_path, "a.png", Image.fromarray(BIG))
    expected = np.asarray(Resize(size)(Image.fromarray(BIG))).transpose(2, 0, 1)
    assert np.array_equal(read_image(str(path), ImageSpec(size=size)), expected)


def test_resizing_is_antialiased(tmp_path: Path) -> None:
    """A fine chequer becomes grey; bilinear interpolation of four neighbours would leave it black or white."""
    chequer = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    for name, image in {
        "a.png": Image.fromarray(chequer),
        "b.png": Image.fromarray(chequer.astype(np.uint16) * 257),
    }.items():
        path = tree(tmp_path / name, name, image)
        inner = read_image(str(path), ImageSpec(size=(9, 9)))[:, 1:-1, 1:-1]
        assert np.abs(inner.astype(int) - 127.5).max() < 12, name


def test_deep_grey_is_resized_before_it_is_rounded(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 24 * 24).reshape(24, 24)
    path = tree(tmp_path, "a.png", Image.fromarray(ramp.astype(np.uint16)))
    found = read_image(str(path), ImageSpec(size=(10, 12)))
    exact = Image.fromarray((ramp.astype(np.uint16) / 257).astype(np.float32)).resize(
        (12, 10), Image.Resampling.BILINEAR
    )
    assert np.abs(found[0] - np.asarray(exact)).max() < 0.51
    assert np.array_equal(found[0], found[2])


def test_an_image_of_the_size_already_keeps_its_bits(tmp_path: Path) -> None:
    for name, image in {"a.png": Image.fromarray(BIG), "b.png": Image.fromarray(DEEP)}.items():
        path = str(tree(tmp_path / name, name, image))
        as_it_is = read_image(path)
        size = as_it_is.shape[1:]
        assert np.array_equal(read_image(path, ImageSpec(size=(size[0], size[1]))), as_it_is)


def test_one_channel_is_grey(tmp_path: Path) -> None:
    colours = tree(tmp_path / "colours", "a.png", Image.fromarray(BIG))
    luma = BIG @ [0.299, 0.587, 0.114]
    found = read_image(str(colours), ImageSpec(channels=1))
    assert found.shape == (1, 40, 30)
    assert np.abs(found[0] - luma).max() <= 1
    for name, image in {"a.png": Image.fromarray(GREY), "b.png": Image.fromarray(DEEP)}.items():
        path = tree(tmp_path / name, name, image)
        assert np.array_equal(read_image(str(path), ImageSpec(channels=1)), GREY[None])


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
