"""Reader of one image file as uint8 RGB, whatever its mode.

Colours and grey of 8 bits are as Pillow reads them. Like torchvision's ImageFolder we drop transparency, do not turn an
image by its EXIF orientation and take the first of several frames. Grey of more bits is scaled by the range of its
mode, never by the extremes of an image: the same value has the same brightness in every file.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from flare_dist.errors import reason, refusal

# The value that is white, by the kind of the file; None = the file does not tell.
_WHITE: dict[str, float | None] = {"I;16": 65535, "I;12": 4095, "PGM": 65535, "I": None, "F": None}


def read_image(path: str, image_range: float | None) -> np.ndarray:
    """Read the image at `path`, uint8 [3, H, W]; `image_range` is the white of deep grey (None = that of its mode).

    Raises ValueError that names the path, and `data.image_range` if it is the range that is wrong.
    """
    try:
        kind, values = _decoded(path)
    except Exception as error:  # the decoders raise whatever damaged bytes lead them to, a KeyError or struct.error too
        raise refusal("data.root", path, f"cannot be read ({reason(error)})") from error
    if kind == "8":
        return values.transpose(2, 0, 1)
    if kind == "16 colours":
        if image_range is not None:
            problem = f"is of 16-bit colours, which are read as 8 bits of 65535, got {image_range:g}; set it to null"
            raise refusal("data.image_range", path, problem)
        return values.transpose(2, 0, 1)
    return np.broadcast_to(_scaled(path, kind, values, image_range), (3, *values.shape))


def _decoded(path: str) -> tuple[str, np.ndarray]:
    """Return (kind, pixels): uint8 [H, W, 3] of the kinds "8" and "16 colours", else grey [H, W] as it is stored."""
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(path)
    except UnidentifiedImageError as error:
        raise ValueError("it is of no format that Pillow reads, or empty") from error
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from error  # without the name of its class
    with image:
        pixels = image.width * image.height
        limit = Image.MAX_IMAGE_PIXELS
        if not pixels or (limit and pixels > limit):  # Pillow itself only warns up to twice the limit
            raise ValueError(f"{image.width}x{image.height} pixels, Pillow's limit is {limit} in all")
        kind = _kind(image)
        if kind in ("8", "16 colours"):
            image.info.pop("transparency", None)  # a palette with transparency would warn, and we drop it anyway
            return kind, np.asarray(image.convert("RGB"))
        return kind, np.asarray(image)


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


def _scaled(path: str, kind: str, values: np.ndarray, image_range: float | None) -> np.ndarray:
    """Scale grey to uint8, with `image_range` or the white of the kind at 255."""
    if kind == "PGM" and image_range is not None:
        problem = f"is a PGM, whose header names the value that is white, got {image_range:g}; set it to null"
        raise refusal("data.image_range", path, problem)
    white = _WHITE[kind] if image_range is None else image_range
    if white is None:
        problem = f"is of mode {kind}, whose range the file does not tell; set it to the value that is white"
        raise refusal("data.image_range", path, problem)
    least = values.min()
    most = values.max()
    if not (least >= 0 and most <= white):  # so that NaN is refused too
        finite = np.isfinite(least) and np.isfinite(most)
        problem = f"has values from {least:g} to {most:g}, not in [0, {white:g}]" if finite else "has NaN or infinity"
        raise refusal("data.root" if image_range is None else "data.image_range", path, problem)
    return np.rint(values * (255 / white)).astype(np.uint8)
