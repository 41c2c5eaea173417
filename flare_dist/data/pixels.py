"""Reader of one image file as uint8 pixels, whatever its mode.

Colours and grey of 8 bits are as Pillow reads them; of several frames the first is taken. Every image is turned as its
EXIF orientation tells, and what is transparent lies on white. Grey of more bits is scaled by the range of its mode,
never by the extremes of an image: the same value has the same brightness in every file.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from flare_dist.errors import reason, refusal

# The value that is white, by the kind of the file; None = the file does not tell.
_WHITE: dict[str, float | None] = {"I;16": 65535, "I;12": 4095, "PGM": 65535, "I": None, "F": None}
_COLOURS = ("8", "16 colours")
_MODES = {1: "L", 3: "RGB"}


class ImageSpec(NamedTuple):
    """How images are to be read."""

    image_range: float | None = None  # the white of deep grey; None = that of its mode
    size: tuple[int, int] | None = None  # (height, width) to which they are resized; None = as they are
    channels: int = 3  # 3 = red, green, blue; 1 = grey


AS_THEY_ARE = ImageSpec()


def height_and_width(size: int | Sequence[int] | None) -> tuple[int, int] | None:
    """Read `data.image_size`: one number is both sides. Raises ValueError that names the key."""
    if size is None:
        return None
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or min(sides) < 1:
        raise ValueError(f"data.image_size: must be one number or [height, width], at least 1, got {size}")
    return sides[0], sides[1]


def read_image(path: str, spec: ImageSpec = AS_THEY_ARE) -> np.ndarray:
    """Read the image at `path`, uint8 [C, H, W].

    Resizing is Pillow's antialiased bilinear, as in torchvision.transforms.Resize, without regard to the aspect ratio;
    grey is luma (ITU-R 601-2). Raises ValueError that names the path, and `data.image_range` if it is the range that is
    wrong.
    """
    try:
        kind, image = _decoded(path)
        if kind in _COLOURS:
            pixels = np.asarray(_resized(_on_white(kind, image).convert(_MODES[spec.channels]), spec.size))
    except Exception as error:  # the decoders raise whatever damaged bytes lead them to, a KeyError or struct.error too
        raise refusal("data.root", path, f"cannot be read ({reason(error)})") from error
    if kind not in _COLOURS:
        pixels = _scaled(path, kind, image, spec)
        return np.broadcast_to(pixels, (spec.channels, *pixels.shape))
    if kind == "16 colours" and spec.image_range is not None:
        problem = f"is of 16-bit colours, which are read as 8 bits of 65535, got {spec.image_range:g}; set it to null"
        raise refusal("data.image_range", path, problem)
    return pixels[None] if spec.channels == 1 else pixels.transpose(2, 0, 1)


def _decoded(path: str) -> tuple[str, Any]:
    """Return the kind of a file, "8", "16 colours" or one of deep grey, and its image, loaded and turned."""
    from PIL import Image, UnidentifiedImageError

    with open(path, "rb") as file:  # of a path, Pillow 13 garbles uncompressed TIFFs that it turns
        try:
            image = Image.open(file)
        except UnidentifiedImageError as error:
            raise ValueError("it is of no format that Pillow reads, or empty") from error
        except Image.DecompressionBombError as error:
            raise ValueError(str(error)) from error  # without the name of its class
        pixels = image.width * image.height
        limit = Image.MAX_IMAGE_PIXELS
        if not pixels or (limit and pixels > limit):  # Pillow itself only warns up to twice the limit
            raise ValueError(f"{image.width}x{image.height} pixels, Pillow's limit is {limit} in all")
        kind = _kind(image)
        image.load()
        _turn(image)
    return kind, image


def _kind(image: Any) -> str:
    """Name the kind of a file that is open but not loaded; Pillow's mode alone does not tell how many bits it has."""
    stored = str(image.tile)
    if image.mode.startswith("I;16"):
        if getattr(image, "tag_v2", {}).get(262) == 0:  # PhotometricInterpretation; Pillow inverts 8 bits only
            raise ValueError("its 16 bits are stored as a negative (WhiteIsZero); save it with black as zero")
        return "I;12" if "I;12" in stored else "I;16"
    if image.mode == "I" and image.format == "PPM":
        return (
            "I;16" if ";16" in stored else "PGM"
        )  # the latter is scaled by Pillow, from the white that the file names
    if image.mode == "I" and image.format == "PNG":  # Pillow before 11
        return "I;16"
    if image.mode in ("I", "F"):
        return str(image.mode)
    return "16 colours" if ";16" in stored else "8"


def _turn(image: Any) -> None:
    """Turn a loaded image in place as its EXIF orientation tells."""
    from PIL import ImageOps

    with suppress(Exception):  # damaged metadata of good pixels may raise anything; they tell no orientation
        ImageOps.exif_transpose(image, in_place=True)


def _on_white(kind: str, image: Any) -> Any:
    """Lay what is transparent on white; an image without transparency is returned as it is."""
    from PIL import Image

    if not image.has_transparency_data:
        return image
    key = image.info.get("transparency")
    if kind == "16 colours" and isinstance(key, tuple):  # the colour that is transparent, of which 8 bits are read
        image.info["transparency"] = tuple(value >> 8 for value in key)
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))


def _resized(image: Any, size: tuple[int, int] | None) -> Any:
    """Resize an image of 8 bits or of floats; one of that size already is returned as it is."""
    from PIL import Image

    if size is None or image.size == size[::-1]:
        return image
    return image.resize(size[::-1], Image.Resampling.BILINEAR)


def _scaled(path: str, kind: str, image: Any, spec: ImageSpec) -> np.ndarray:
    """Scale deep grey to uint8 [H, W], with `image_range` or the white of the kind at 255; rounded once, at the end."""
    from PIL import Image

    values = np.asarray(image)
    image_range = spec.image_range
    if kind == "PGM" and image_range is not None:
        problem = f"is a PGM, whose header names the value that is white, got {image_range:g}; set it to null"
        raise refusal("data.image_range", path, problem)
    white = _WHITE[kind] if image_range is None else image_range
    if white is None:
        problem = f"is of mode {kind}, whose range the file does not tell; set it to the value that is white"
        raise refusal("data.image_range", path, problem)
    if "transparency" in image.info:  # the value that is transparent
        values = np.where(values == image.info["transparency"], white, values)
    least = values.min()
    most = values.max()
    if not (least >= 0 and most <= white):  # so that NaN is refused too
        finite = np.isfinite(least) and np.isfinite(most)
        problem = f"has values from {least:g} to {most:g}, not in [0, {white:g}]" if finite else "has NaN or infinity"
        raise refusal("data.root" if image_range is None else "data.image_range", path, problem)
    brightness = values * (255 / white)
    if spec.size is not None and values.shape != spec.size:
        brightness = np.asarray(_resized(Image.fromarray(brightness.astype(np.float32)), spec.size))
    return np.rint(brightness).astype(np.uint8)
