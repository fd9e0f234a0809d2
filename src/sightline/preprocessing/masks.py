"""Decode a mask: an image whose pixels are values of classes, not colors."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sightline.errors import ImageError
from sightline.preprocessing import formats
from sightline.preprocessing.formats import ImageBytes, translate_errors

MASK_MODES = frozenset({"1", "L", "P"})
MAX_MASK_MEGAPIXELS = 50


def decode_mask(data: ImageBytes) -> NDArray[np.uint8]:
    """Decode an indexed or grayscale PNG to the values of its pixels, uint8 [H, W]: palette indices or gray levels.

    Nothing is converted or resized, so that a value stays what it is. An image of one bit has the values 0 and 1.
    Raises ImageError for any other format, whose compression may change values, and for color or 16-bit pixels.
    """
    with translate_errors():
        image = formats.open_image(data, 1, MAX_MASK_MEGAPIXELS)
        if image.format != "PNG":
            raise ImageError(f"is {image.format}, not PNG: other formats may change the values of a mask")
        if image.mode not in MASK_MODES:
            raise ImageError(
                f"has pixels of mode {image.mode}: expected an indexed or grayscale PNG of at most 8 bits, whose "
                "values are those of the classes"
            )
        formats.check_pixel_count(*image.size, image.width * image.height, MAX_MASK_MEGAPIXELS)
        return np.array(image, np.uint8)
