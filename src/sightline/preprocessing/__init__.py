"""Preprocessing: encoded bytes -> ``uint8 [height, width, channels]``, with NumPy and Pillow alone.

Training, evaluation, export checks, prediction and serving all call `PreprocessingSpec.decode`, so that an image has
the same pixels everywhere. Everything here is thread-safe. `SCHEMA_VERSION` is the version of these rules:

- Formats: those in `FORMATS`, detected by their first bytes; HEIC if `pillow-heif` is installed. Formats that Pillow
  decodes with other programs (EPS, WMF) and formats without a signature (TGA) are not supported. Of several pages or
  frames, `page` is read. The Orientation tag (EXIF, else XMP) is applied; ICC profiles are not.
- Alpha, `tRNS` colors and transparent palette entries are composited over white.
- Samples of more than 8 bits (integers, floats): `value_range` [low, high] is mapped to 0..255; values outside it are
  clipped and NaN becomes low. It does not apply to images of 8 bits or fewer, CMYK, PPM color and JPEG 2000 color. For
  16-bit color in separate planes or with premultiplied alpha, and for 16-bit gray with alpha, the high byte replaces
  the low.
- Without `value_range`: 16-bit gray 0..65535 -> round(v / 257). For 16-bit color, Pillow keeps the high byte (and
  ignores a `tRNS` color). 32-bit integers (mode I) and floats (mode F) are scaled by the values in the image: the first
  of 0..1 (F only), 0..255, 0..65535 (PGM: always this one) that contains them all is mapped to 0..255, else
  minimum..maximum. NaN counts as the minimum.
- CMYK and YCCK (Adobe's inversion undone), HSV, YCbCr: Pillow's plain conversion; LAB: LittleCMS, D50 to sRGB.
- Gray is Pillow's ITU-R 601-2 luma of the RGB pixels. Resizing is antialiased, and skipped when the size is right.
- A JPEG at least 4 times the target on both axes is decoded at 1/2, 1/4 or 1/8, never to less than twice the target.
- An image of more than `max_megapixels` in memory is refused. So is a JPEG 2000, WebP or AVIF, which Pillow decodes
  whole, if decoding it takes more than 21 MB per megapixel of this limit.
"""

from sightline.preprocessing.array_hints import suggest_conversion
from sightline.preprocessing.formats import (
    FORMATS,
    ImageHeader,
    detect_format,
    encode_png,
    measure_image,
)
from sightline.preprocessing.pillow_errors import translate_errors
from sightline.preprocessing.spec import (
    LUMA,
    SCHEMA_VERSION,
    Box,
    PreprocessingSpec,
    Resize,
    decode_preview,
    fit_size,
    inspect_image,
    use_large_image_lock,
)

__all__ = [
    "FORMATS",
    "LUMA",
    "SCHEMA_VERSION",
    "Box",
    "ImageHeader",
    "PreprocessingSpec",
    "Resize",
    "decode_preview",
    "detect_format",
    "encode_png",
    "fit_size",
    "inspect_image",
    "measure_image",
    "suggest_conversion",
    "translate_errors",
    "use_large_image_lock",
]
