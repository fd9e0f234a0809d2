"""Decode a mask: an image whose pixels are values or colors of classes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import ImageFile

from sightline.errors import ImageError
from sightline.preprocessing import formats
from sightline.preprocessing.formats import ImageBytes
from sightline.preprocessing.pillow_errors import translate_errors

MASK_MODES = frozenset({"1", "L", "P"})
COLOR_MODES = MASK_MODES | {"LA", "RGB", "RGBA"}
MAX_MASK_MEGAPIXELS = 50
TRANSPARENT = 1 << 24
"""The value of a fully transparent pixel among colors, which are 0xRRGGBB."""


def decode_mask(data: ImageBytes) -> NDArray[np.uint8]:
    """Decode an indexed or grayscale PNG to the values of its pixels, uint8 [H, W]: palette indices or gray levels.

    Nothing is converted or resized, so values are unchanged. A 1-bit image has the values 0 and 1.
    Raises ImageError for any other format, whose compression may change values, and for color or 16-bit pixels.
    """
    with translate_errors():
        image = _open_png(data)
        if image.mode not in MASK_MODES:
            raise ImageError(
                f"has pixels of mode {image.mode}: expected an indexed or grayscale PNG of at most 8 bits, whose "
                "values are those of the classes, or a table of classes that names colors, such as #804080"
            )
        return np.array(image, np.uint8)


def decode_color_mask(data: ImageBytes) -> NDArray[np.uint32]:
    """Decode a PNG of at most 8 bits per channel to the colors of its pixels as 0xRRGGBB, uint32 [H, W].

    Palette indices are converted to palette colors, and gray levels to gray colors. A fully transparent pixel is
    `TRANSPARENT`. Raises ImageError for any other format, and for pixels that are partly transparent.
    """
    with translate_errors():
        image = _open_png(data)
        if image.mode not in COLOR_MODES:
            raise ImageError(f"has pixels of mode {image.mode}: expected a PNG of at most 8 bits per channel")
        channels = np.array(image.convert("RGBA"), np.uint32)
    alpha = channels[..., 3]
    if ((alpha != 0) & (alpha != 255)).any():
        raise ImageError("has partly transparent pixels: expected the color of a class for each")
    colors = channels[..., 0] << 16 | channels[..., 1] << 8 | channels[..., 2]
    return np.where(alpha == 0, np.uint32(TRANSPARENT), colors)


def _open_png(data: ImageBytes) -> ImageFile.ImageFile:
    """Open a mask without decoding it; raises ImageError unless it is a PNG of at most `MAX_MASK_MEGAPIXELS`."""
    image = formats.open_image(data, 1, MAX_MASK_MEGAPIXELS)
    if image.format != "PNG":
        raise ImageError(f"is {image.format}, not PNG: other formats may change the values of a mask")
    formats.check_pixel_count(*image.size, image.width * image.height, MAX_MASK_MEGAPIXELS)
    return image
