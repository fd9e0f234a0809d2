"""Open encoded bytes as a Pillow image and read its header; no pixels are decoded here."""

from __future__ import annotations

import io
import re
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, features
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from sightline.errors import ImageError, suggest_install
from sightline.preprocessing import box_limits, structure_limits, tiff_limits
from sightline.preprocessing.counts import MAX_COUNTED_FRAMES
from sightline.preprocessing.pillow_errors import translate_errors
from sightline.preprocessing.ppm import open_ppm

ImageBytes = bytes | bytearray | memoryview
ValueRange = tuple[float, float]  # sample values: low, high


def _open_heif(file: IO[bytes]) -> ImageFile.ImageFile:
    try:
        from pillow_heif import HeifImageFile  # applies HEIF's rotation and resets EXIF's orientation
    except ImportError:
        raise ImageError(f"HEIC images need the package pillow-heif: {suggest_install('heif')}") from None
    return cast("ImageFile.ImageFile", HeifImageFile(file))


def _open_avif(file: IO[bytes]) -> ImageFile.ImageFile:
    if not features.check("avif"):
        raise ImageError("AVIF images need a Pillow that was built with AVIF: pip install --upgrade pillow")
    return AvifImageFile(file)


# Pillow's readers are called directly: Image.open has a global pixel limit, and warns before it raises.
FORMATS: dict[str, tuple[bytes, Callable[[IO[bytes]], ImageFile.ImageFile]]] = {
    "JPEG": (rb"\xff\xd8\xff", JpegImageFile),  # also MPO, of which the first image is read
    "PNG": (rb"\x89PNG\r\n\x1a\n", PngImageFile),
    "WEBP": (rb"RIFF....WEBP", WebPImageFile),
    "GIF": (rb"GIF8[79]a", GifImageFile),
    "BMP": (rb"BM", BmpImageFile),
    "TIFF": (rb"II[*+]\0|MM\0[*+]", TiffImageFile),
    "PPM": (rb"P[1-6f]\s", open_ppm),  # also PBM and PGM
    "JPEG2000": (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", Jpeg2KImageFile),
    # The major brands mif1 and msf1 do not state the codec; the compatible brands after them do.
    "AVIF": (rb"....ftyp(avi[fs]|m[is]f1.{4}(....){0,12}?avi[fs])", _open_avif),
    "HEIF": (rb"....ftyp(hei[cxms]|hev[cxms]|m[is]f1)", _open_heif),
}
_UNSUPPORTED = (
    rb"(?P<JXL>\xff\x0a|....JXL )|(?P<PSD>8BPS)|(?P<ICO>\0\0\x01\0)|(?P<DDS>DDS )"
    rb"|(?P<EPS>%!PS|\xc5\xd0\xd3\xc6)|(?P<PDF>%PDF)|(?P<SVG><svg|<\?xml)|(?P<WMF>\xd7\xcd\xc6)"
)
_SIGNATURES = {name: re.compile(magic, re.DOTALL) for name, (magic, _) in FORMATS.items()}
_SIGNATURE_BYTES = 72  # bytes that identify the format
_NATIVE_ORDER, _OPPOSITE_ORDER = ("L", "B") if sys.byteorder == "little" else ("B", "L")
# Pillow unpacks the high bytes of 16-bit color; with the opposite byte order, it unpacks the low bytes.
_LOW_BYTES = {
    f"{mode};16{order}": f"{mode};16{low}"
    for mode in ("RGB", "RGBA", "RGBX")
    for order, low in (("L", "B"), ("B", "L"), ("N", _OPPOSITE_ORDER))
}
_BITS, _SAMPLE_FORMAT, _PLANES = 258, 339, 284  # TIFF's tags BitsPerSample, SampleFormat, PlanarConfiguration
# SMinSampleValue before MinSampleValue; SMaxSampleValue before MaxSampleValue
_MIN_VALUE_TAGS, _MAX_VALUE_TAGS = (340, 280), (341, 281)
_SIGNED, _SEPARATE = 2, 2  # values of SampleFormat and PlanarConfiguration
_ROTATING = frozenset(range(2, 9))  # values of the Orientation tag that rotate or flip


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """The header of an image file; width and height in pixels, as displayed (after `read_orientation`, 1..8).

    `high_bit_depth`: samples have more than 8 bits. `stated_range`: the range of sample values in its tags, if narrower
    than that of their type.
    """

    format: str
    mode: str
    width: int
    height: int
    frames: int
    orientation: int
    high_bit_depth: bool = False
    stated_range: ValueRange | None = None


def open_image(data: ImageBytes, page: int, max_megapixels: int) -> ImageFile.ImageFile:
    """Open page (or frame) `page` of an encoded image, counted from 1, without decoding it.

    Call it within `translate_errors`.

    Earlier frames of an animation are decoded, so they must not exceed `max_megapixels`.
    """
    format_name, content = detect_format(bytes(data[:_SIGNATURE_BYTES])), bytes(data)  # bytes(data) does not copy bytes
    if format_name == "JPEG2000" and b"\xff\xd9" not in content:  # OpenJPEG may fill in missing data
        raise ImageError("truncated")
    structure_limits.check_structure(format_name, content)
    image = _open_page(format_name, content, page, max_megapixels)
    structure_limits.check_sides(*image.size)
    return image


def detect_format(start: bytes) -> str:
    """Return the format, a key of `FORMATS`, from a file's first bytes; raises ImageError for other files."""
    for name, pattern in _SIGNATURES.items():
        if pattern.match(start):
            return name
    unsupported = re.match(_UNSUPPORTED, start, re.DOTALL)
    raise ImageError(f"format {unsupported.lastgroup} is not supported" if unsupported else _explain_other(start))


def _explain_other(start: bytes) -> str:
    """Return the reason for rejecting a file that does not start like an image."""
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer instead of the image: run `git lfs pull` where it was cloned"
    if start.startswith(b"bplist00"):  # .1.jpg.icloud
        return "only in iCloud: download the folder, with Download Now in the Finder"
    if start.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "a web page instead of the image: download it again"
    if re.match(
        rb"....ftyp(?!crx)|RIFF....AVI |\x1aE\xdf\xa3", start, re.DOTALL
    ):  # "crx": raw files from Canon cameras
        return "a video instead of the image: save its frames as images"
    if start and not start.strip(b"\0"):
        return "starts with zeros: an incomplete copy or download"
    return "not an image" if start else "empty file"


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Return pixels uint8 [H, W], [H, W, 1] or [H, W, 3 or 4], gray, RGB or RGBA, as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels).save(file, "PNG")
    return file.getvalue()


def check_pixel_count(width: int, height: int, pixel_count: int, max_megapixels: int) -> None:
    """Raise ImageError if an image takes more pixels in memory than allowed."""
    if pixel_count > max_megapixels * 10**6:
        raise ImageError(f"too large: {width}x{height} pixels, limit {max_megapixels} megapixels (max_megapixels)")


def check_memory(image: ImageFile.ImageFile, data: ImageBytes, max_megapixels: int) -> None:
    """Raise ImageError if decoding an opened image takes more memory than `max_megapixels` allow."""
    format_name = detect_format(bytes(data[:_SIGNATURE_BYTES]))
    box_limits.check_memory(format_name, bytes(data), *image.size, image.tell(), max_megapixels)


def _open_page(format_name: str, data: bytes, page: int, max_megapixels: int) -> ImageFile.ImageFile:
    if page > 1 and format_name == "TIFF":
        data = tiff_limits.select_tiff_page(data, page)
    image = FORMATS[format_name][1](io.BytesIO(data))
    if page > 1 and format_name != "TIFF":
        _seek_page(page, image, data, max_megapixels)
    if (
        isinstance(image, TiffImageFile)
        and len(_get_raw_mode(image)) == 1
        and _get_bits_per_sample(image) > 8
        and _has_separate_planes(image)
    ):
        raise ImageError("16-bit color in uncompressed separate planes, which Pillow misreads: save it interleaved")
    return image


def _seek_page(page: int, image: ImageFile.ImageFile, data: bytes, max_megapixels: int) -> None:
    pages = _count_frames(image, data)
    if page > pages:
        is_all = pages < MAX_COUNTED_FRAMES or not isinstance(image, GifImageFile)
        raise ImageError(
            f"has no page {page}, only {pages}" if is_all else f"page {page} is not among the first {pages:,}"
        )
    width, height = image.size
    if isinstance(image, GifImageFile):
        right, bottom = structure_limits.measure_gif_canvas(data, page)
        width, height = max(width, right), max(height, bottom)
    check_pixel_count(width, height, width * height, max_megapixels)
    structure_limits.check_frames(page, width, height)
    image.seek(page - 1)


def read_header(image: ImageFile.ImageFile, data: ImageBytes) -> ImageHeader:
    """Return the header of an opened image."""
    orientation_tag = read_orientation(image)
    swaps_sides = orientation_tag >= 5 and not isinstance(image, TiffImageFile)  # Pillow reports the size as displayed
    size = image.size[::-1] if swaps_sides else image.size
    high_bit_depth = has_high_bit_depth(image)
    stated_range = _read_stated_range(image, data) if high_bit_depth else None
    return ImageHeader(
        str(image.format),
        image.mode,
        *size,
        _count_frames(image, bytes(data)),
        orientation_tag,
        high_bit_depth,
        stated_range,
    )


def _count_frames(image: ImageFile.ImageFile, data: bytes) -> int:
    """Return the number of frames or pages; Pillow would read through a whole GIF or TIFF to count them."""
    if isinstance(image, GifImageFile | TiffImageFile):
        return structure_limits.check_structure(str(image.format), data) or 1
    with suppress(Exception):  # a later frame may be damaged but never used
        return int(getattr(image, "n_frames", 1))
    return 1


def read_orientation(image: Image.Image) -> int:
    """Return the value of the Orientation tag, 1..8; 1 if there is none. Raises ImageError for excessive EXIF."""
    if isinstance(exif := image.info.get("exif"), bytes):
        tiff_limits.check_exif(exif)
    tiff_limits.check_exif_text(str(image.info.get("Raw profile type exif", "")))
    with suppress(Exception):  # corrupt EXIF does not invalidate an image
        # PngImageFile.getexif would load the pixels, because EXIF may follow them; `inspect_image` misses such EXIF.
        value = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
        return cast("int", value) if value in _ROTATING else 1
    return 1


def has_high_bit_depth(image: Image.Image) -> bool:
    """Return whether samples have more than 8 bits, for an image in memory or one opened but not yet loaded."""
    return image.mode == "F" or image.mode.startswith("I") or has_high_bit_depth_color(image)


def has_high_bit_depth_color(image: Image.Image) -> bool:
    """Return whether an opened file contains 16-bit color, of which Pillow decodes only the high bytes."""
    return ";16" in _get_raw_mode(image) and image.mode in {"RGB", "RGBA"}


def open_low_bytes(
    data: ImageBytes, page: int, image: ImageFile.ImageFile, max_megapixels: int
) -> ImageFile.ImageFile | None:
    """Open the low bytes of a 16-bit color file, whose high bytes are in `image`; None if Pillow cannot."""
    raw = _LOW_BYTES.get(_get_raw_mode(image))
    if raw is None or _has_separate_planes(image):
        return None
    low = open_image(data, page, max_megapixels)
    low.tile = [t._replace(args=raw if isinstance(t.args, str) else (raw, *cast("Any", t.args)[1:])) for t in low.tile]
    return low


def has_single_scan(image: JpegImageFile) -> bool:
    """Return whether libjpeg can decode line by line; otherwise it keeps the unscaled image in memory at any scale."""
    stream = cast("io.BytesIO", image.fp)  # after the first scan's header: count, 2 bytes per component, 3 bytes
    count = stream.getvalue()[stream.tell() - 4 - 2 * image.layers]
    return "progressive" not in image.info and count == image.layers


def _get_raw_mode(image: Image.Image) -> str:
    tiles = getattr(image, "tile", None)
    args = tiles[0].args if tiles else ""
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


def _get_tags(image: Image.Image) -> Any:
    return image.tag_v2 if isinstance(image, TiffImageFile) else {}


def _has_separate_planes(image: Image.Image) -> bool:
    return bool(_get_tags(image).get(_PLANES) == _SEPARATE)


def _get_bits_per_sample(image: Image.Image) -> float:
    return max(_to_floats(_get_tags(image).get(_BITS)), default=8.0)


def _read_stated_range(image: ImageFile.ImageFile, data: ImageBytes) -> ValueRange | None:
    """Return the range stated by tags: TIFF's (S)Min-/(S)MaxSampleValue or unusual BitsPerSample, PNG's sBIT."""
    with suppress(Exception):  # damaged tags
        if isinstance(image, PngImageFile):
            bits = _read_significant_bits(bytes(data[:4096]))
            return (0.0, 2.0**bits - 1) if 8 < bits < 16 else None
        if isinstance(image, TiffImageFile):
            return _read_tiff_range(image)
    return None


def _read_tiff_range(image: TiffImageFile) -> ValueRange | None:
    bits, tags = _get_bits_per_sample(image), _get_tags(image)
    signed = _to_floats(tags.get(_SAMPLE_FORMAT))[:1] == [_SIGNED]
    type_max = 2.0 ** (bits - signed) - 1
    low, high = (
        _to_floats(tags.get(exact)) or _to_floats(tags.get(short))
        for exact, short in (_MIN_VALUE_TAGS, _MAX_VALUE_TAGS)
    )
    minimum, maximum = min(low, default=0.0), max(high, default=type_max)
    if minimum < maximum < type_max:
        return minimum, maximum
    return (0.0, type_max) if 8 < bits < 16 else None


def _to_floats(value: Any) -> list[float]:
    return [float(v) for v in (value if isinstance(value, tuple) else () if value is None else (value,))]


def _read_significant_bits(data: bytes) -> int:
    """Return the most bits per channel stated by a PNG's sBIT chunk; 0 if there is none before the pixels."""
    offset = 8
    while offset + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, offset)
        if name == b"sBIT":
            return max(data[offset + 8 : offset + 8 + length], default=0)
        if name == b"IDAT":
            break
        offset += 12 + length
    return 0


def measure_image(image: Image.Image) -> tuple[int, int]:
    """Return the width and height of a Pillow image as displayed; loads a lazy one, which raises ImageError."""
    with translate_errors():
        image.load()  # a PNG may state its orientation after the pixels; loading rotates a TIFF
        width, height = image.size
        return (height, width) if read_orientation(image) >= 5 else (width, height)
