"""The preprocessing spec: encoded bytes -> ``uint8 [height, width, channels]``, with NumPy and Pillow alone.

Training, evaluation, export checks, prediction and serving all call `Preprocess.decode`, so that an image has the
same pixels everywhere. All here is thread-safe. `SCHEMA` numbers these rules:

- Formats: `FORMATS`, told by their first bytes; HEIC where `pillow-heif` is installed. Not those that Pillow hands to
  other programs (EPS, WMF), nor those without a signature (TGA). Of several pages or frames, the one in `page`. The
  Orientation tag (EXIF, else XMP) is applied, ICC profiles are not.
- Alpha, `tRNS` colors and transparent palette entries are composed over white.
- Samples of more than 8 bits (integers, floats): `range` [low, high] is mapped to 0..255, values beyond are clipped and
  NaN is low. Images of 8 bits or fewer, CMYK, PPM color and JPEG 2000 color are not touched by it. Low bytes of 16-bit
  color with planes apart, with premultiplied alpha or with one gray channel and alpha are taken as their high bytes.
- Without `range`: 16-bit gray 0..65535 -> round(v / 257). Of 16-bit color Pillow keeps the high byte (and misses a
  `tRNS` color). 32-bit integers (mode I) and floats (mode F) go by the values of the image: the first of 0..1 (F only),
  0..255, 0..65535 (PGM: always this one) that holds them all is mapped to 0..255, else minimum..maximum is. NaN counts
  as the minimum.
- CMYK and YCCK (Adobe's inversion undone), HSV, YCbCr: Pillow's plain conversion; LAB: LittleCMS, D50 to sRGB.
- Gray is Pillow's ITU-R 601-2 luma of the RGB pixels. Resizing is antialiased, and skipped when the size is right.
- A JPEG at least 4 times the target on both axes is decoded at 1/2, 1/4 or 1/8, never to less than twice the target.
- An image of more than `max_megapixels` in memory is refused.
"""

from sightline.preprocess.formats import FORMATS, Header, find_format
from sightline.preprocess.spec import SCHEMA, Box, Preprocess, Resize, glance, inspect

__all__ = ["FORMATS", "SCHEMA", "Box", "Header", "Preprocess", "Resize", "find_format", "glance", "inspect"]
