"""Convert any mode that Pillow decodes to 8-bit L or RGB, by the rules in the docstring of the package."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from sightline.preprocess.formats import Range


def to_8_bit(
    image: Image.Image, limits: Range | None = None, low: Image.Image | None = None, *, deep_color: bool = False
) -> Image.Image:
    """Convert a loaded image to mode L or RGB.

    `limits` are the values mapped to 0 and 255 if samples have more than 8 bits. For 16-bit color (`deep_color`),
    `image` holds the high bytes and `low` the low ones, if known.
    """
    if image.mode.startswith("I;16"):
        values = np.asarray(image)
        levels = _table(limits)[values]
        levels[values == image.info.get("transparency", -1)] = 255
        return Image.fromarray(levels)
    if image.mode in ("I", "F"):
        if limits is not None:
            return _scaled(np.asarray(image), limits, limits[0])
        ranges = {"F": (1, 255, 65535), "I": (65535,) if image.format == "PPM" else (255, 65535)}
        return _from_values(np.asarray(image), ranges[image.mode])
    if deep_color and limits is not None:
        planes = [Image.fromarray(_table(limits)[plane]) for plane in np.moveaxis(deep_values(image, low), -1, 0)]
        alpha = [image.getchannel("A")] if image.mode == "RGBA" else []
        image = Image.merge(image.mode, [*planes, *alpha])
    if image.has_transparency_data:
        rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(rgba, mask=rgba)
        return white
    if image.mode == "LAB":
        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.buildTransform(*profiles, "LAB", "RGB").apply(image)
    return image if image.mode in ("L", "RGB") else image.convert("L" if image.mode == "1" else "RGB")


def deep_values(image: Image.Image, low: Image.Image | None) -> NDArray[Any]:
    """Return the samples, without alpha, of a loaded image of more than 8 bits: [H, W], or uint16 [H, W, 3] for color.

    For color, `image` holds the high bytes and `low` the low ones; without `low`, 0..255 is spread over 0..65535.
    """
    if image.mode not in ("RGB", "RGBA"):
        return np.asarray(image)
    high = np.asarray(image)[..., :3].astype(np.uint16)
    return high * np.uint16(257) if low is None else high << 8 | np.asarray(low)[..., :3]


@functools.lru_cache(maxsize=8)
def _table(limits: Range | None) -> NDArray[np.uint8]:
    """Return the 8-bit level of each 16-bit value, uint8 [65536]; for 0..65535 it is round(v / 257), without ties."""
    table = (np.interp(np.arange(65536), limits or (0, 65535), (0, 255)) + 0.5).astype(np.uint8)
    table.flags.writeable = False
    return table


def _from_values(values: NDArray[Any], ranges: tuple[int, ...]) -> Image.Image:
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    ends = next(((0.0, top) for top in ranges if low >= 0 and high <= top), (low, high))
    return _scaled(values, ends, low)


def _scaled(values: NDArray[Any], ends: Range, nan: float) -> Image.Image:
    rows = [(np.interp(np.where(np.isnan(row), nan, row), ends, (0, 255)) + 0.5).astype(np.uint8) for row in values]
    return Image.fromarray(np.stack(rows))  # row by row, as float64 for the whole image takes too much memory
