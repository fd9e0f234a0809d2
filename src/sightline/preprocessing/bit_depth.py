"""Convert any mode that Pillow decodes to 8-bit L or RGB, following the rules in the package docstring."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from sightline.preprocessing.formats import ValueRange


def convert_to_8_bit(
    image: Image.Image,
    limits: ValueRange | None = None,
    low_bytes: Image.Image | None = None,
    *,
    high_bit_depth_color: bool = False,
) -> Image.Image:
    """Convert a loaded image to mode L or RGB.

    `limits` are the values mapped to 0 and 255 if samples have more than 8 bits. For 16-bit color
    (`high_bit_depth_color`), `image` holds the high bytes and `low_bytes` the low ones, if known.
    """
    if image.mode.startswith("I;16"):
        values = np.asarray(image)
        levels = _make_level_table(limits)[values]
        levels[values == image.info.get("transparency", -1)] = 255
        return Image.fromarray(levels)
    if image.mode in ("I", "F"):
        if limits is not None:
            return _scale(np.asarray(image), limits, limits[0])
        ranges = {"F": (1, 255, 65535), "I": (65535,) if image.format == "PPM" else (255, 65535)}
        return _scale_by_content(np.asarray(image), ranges[image.mode])
    if high_bit_depth_color and limits is not None:
        planes = [
            Image.fromarray(_make_level_table(limits)[plane])
            for plane in np.moveaxis(get_high_bit_depth_samples(image, low_bytes), -1, 0)
        ]
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


def get_high_bit_depth_samples(image: Image.Image, low_bytes: Image.Image | None) -> NDArray[Any]:
    """Return the samples, without alpha, of a loaded image of more than 8 bits: [H, W], or uint16 [H, W, 3] for color.

    For color, `image` holds the high bytes and `low_bytes` the low ones; without `low_bytes`, 0..255 is spread over
    0..65535.
    """
    if image.mode not in ("RGB", "RGBA"):
        return np.asarray(image)
    high_bytes = np.asarray(image)[..., :3].astype(np.uint16)
    return high_bytes * np.uint16(257) if low_bytes is None else high_bytes << 8 | np.asarray(low_bytes)[..., :3]


@functools.lru_cache(maxsize=8)
def _make_level_table(limits: ValueRange | None) -> NDArray[np.uint8]:
    """Return the 8-bit level of each 16-bit value, uint8 [65536]; for 0..65535 it is round(v / 257), without ties."""
    table = (np.interp(np.arange(65536), limits or (0, 65535), (0, 255)) + 0.5).astype(np.uint8)
    table.flags.writeable = False
    return table


def _scale_by_content(values: NDArray[Any], ranges: tuple[int, ...]) -> Image.Image:
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    limits = next(((0.0, top) for top in ranges if low >= 0 and high <= top), (low, high))
    return _scale(values, limits, low)


def _scale(values: NDArray[Any], limits: ValueRange, nan_value: float) -> Image.Image:
    rows = [
        (np.interp(np.where(np.isnan(row), nan_value, row), limits, (0, 255)) + 0.5).astype(np.uint8) for row in values
    ]
    return Image.fromarray(np.stack(rows))  # row by row, because float64 for the whole image takes too much memory
