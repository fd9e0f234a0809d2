"""The picture contract: encoded bytes -> ``uint8 [height, width, channels]``, with NumPy and Pillow alone.

Training, evaluation, export checks, prediction and serving all call `Preprocess.decode`, so that a picture has the
same pixels everywhere. All here is thread-safe. `SCHEMA` numbers these rules:

- Formats: `FORMATS`, told by their first bytes; the first frame. Not those that Pillow hands to other programs (EPS,
  WMF), nor those without a signature (TGA). The Orientation tag (EXIF, else XMP) is applied, ICC profiles are not.
- Alpha, `tRNS` colours and transparent palette entries are composed over white.
- 16-bit grey 0..65535 -> round(v / 257). Of 16-bit colour Pillow keeps the high byte (and misses a `tRNS` colour).
- 32-bit integers (mode I) and floats (mode F) go by the values found: the first of 0..1 (F only), 0..255, 0..65535
  (PGM: always this one) that holds them all is mapped to 0..255, else minimum..maximum is. NaN counts as the minimum.
- CMYK and YCCK (Adobe's inversion undone), HSV, YCbCr: Pillow's plain conversion; LAB: LittleCMS, D50 to sRGB.
- Grey is Pillow's ITU-R 601-2 luma of the RGB pixels. Resizing is antialiased, and skipped when the size is right.
- A JPEG at least 4 times the target on both axes is decoded at 1/2, 1/4 or 1/8, never to less than twice the target.
"""

from __future__ import annotations

import io
import re
import struct
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from typing import IO, Any, Literal, TypeAlias, cast, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageFile
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from sightline.errors import ModelError, PictureError, UsageError

SCHEMA = 1  # whatever changes pixels needs a new number
MAX_SIDE = 4096  # of the result
MAX_PIXELS = 50_000_000  # to be decoded, after JPEG scaling
LARGE_PIXELS = 8_000_000  # pictures above this decode one at a time, so that memory stays bounded under many threads

Resize = Literal["stretch", "crop", "pad"]
Filter = Literal["bilinear", "bicubic", "lanczos", "box", "nearest"]
Size: TypeAlias = tuple[float, float]  # width, height, in pixels
Box: TypeAlias = tuple[float, float, float, float]  # left, top, right, bottom

# Pillow's readers are called directly: Image.open adds a limit on pixels which is global, and warns before it refuses.
FORMATS: dict[str, tuple[bytes, Callable[[IO[bytes]], ImageFile.ImageFile]]] = {
    "JPEG": (rb"\xff\xd8\xff", JpegImageFile),  # MPO too: its first picture
    "PNG": (rb"\x89PNG\r\n\x1a\n", PngImageFile),
    "WEBP": (rb"RIFF....WEBP", WebPImageFile),
    "GIF": (rb"GIF8[79]a", GifImageFile),
    "BMP": (rb"BM", BmpImageFile),
    "TIFF": (rb"II[*+]\0|MM\0[*+]", TiffImageFile),
    "PPM": (rb"P[1-6f]\s", PpmImageFile),  # PBM and PGM too
    "JPEG2000": (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", Jpeg2KImageFile),
    "AVIF": (rb"....ftyp(avi[fs]|m[is]f1)", AvifImageFile),
}
_REFUSED = (
    rb"(?P<HEIC>....ftyphe[iv])|(?P<JXL>\xff\x0a|....JXL )|(?P<PSD>8BPS)|(?P<ICO>\0\0\x01\0)|(?P<DDS>DDS )"
    rb"|(?P<EPS>%!PS|\xc5\xd0\xd3\xc6)|(?P<PDF>%PDF)|(?P<SVG><svg|<\?xml)|(?P<WMF>\xd7\xcd\xc6)"
)
_FLIPS = ("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90")
_TURNS = {orientation: Image.Transpose[name] for orientation, name in enumerate(_FLIPS, start=2)}
_LARGE = threading.Lock()
_THREAD = threading.local()


@dataclass(frozen=True, slots=True)
class Header:
    """What a picture file says of itself; width and height in pixels, as displayed (after `orientation`, 1..8)."""

    format: str
    mode: str
    width: int
    height: int
    frames: int
    orientation: int


def inspect(data: bytes | bytearray | memoryview) -> Header:
    """Read only the header of an encoded picture: cheap, but its pixels may still be damaged. Raises PictureError."""
    with _reading():
        return _header(_open(data))


def glance(data: bytes | bytearray | memoryview, side: int) -> tuple[Header, NDArray[np.uint8]]:
    """Decode for a look, not for a network: the header, and grey pixels uint8 [H, W] of at most `side` on each axis.

    Half the work of `decode`: a JPEG gives its luma alone, at a scale of just `side` or more. What is damaged is found
    all the same, as every bit is still read. PictureError as from `inspect` and `decode`.
    """
    with _reading():
        image = _open(data)
        header = _header(image)
        if not isinstance(image, JpegImageFile):
            image = _open(data)  # counting frames may have left it at a damaged one
        how = Preprocess(min(header.height, side), min(header.width, side), 1)
        return header, how.of(image, least=1, mode="L")[..., 0]


@dataclass(frozen=True, slots=True)
class Preprocess:
    """How every picture becomes ``uint8 [height, width, channels]``; a value, stored with the run and the bundle.

    `channels` is 3 (RGB) or 1 (grey). `resize`: "stretch" brings both axes to the target; "crop" the shorter side,
    keeping the centre; "pad" the longer side, centred on black. UsageError for a value out of range.
    """

    height: int = 224
    width: int = 224
    channels: Literal[1, 3] = 3
    resize: Resize = "stretch"
    filter: Filter = "bilinear"

    def __post_init__(self) -> None:
        choices = {"channels": (1, 3), "resize": get_args(Resize), "filter": get_args(Filter)}
        for name in self.__slots__:
            value = getattr(self, name)
            allowed = choices.get(name, range(1, MAX_SIDE + 1))
            if type(value) is not type(allowed[0]) or value not in allowed:
                expected = f"one of {allowed}" if name in choices else f"an integer in 1..{MAX_SIDE}"
                raise UsageError(f"{name} must be {expected}, got {value!r}")

    def decode(self, data: bytes | bytearray | memoryview) -> NDArray[np.uint8]:
        """Decode one picture, wholly, to a new array ``[height, width, channels]``, or raise PictureError(reason)."""
        with _reading():
            return self.of(_open(data))

    def of(self, image: ImageFile.ImageFile, least: float = 2, mode: str | None = None) -> NDArray[np.uint8]:
        """Decode an opened picture; a JPEG to no less than `least` times the target, and as `mode` ("L") where given.

        Raises whatever Pillow raises; `decode` is for those outside this module.
        """
        full = image.size
        size, pixels = self._scale(image, least, mode)
        _check_pixels(full, pixels)
        with _LARGE if pixels > LARGE_PIXELS else nullcontext():
            return self._fit(image, size)

    def fit(self, image: Image.Image | NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Bring pixels already in memory to a new array ``[height, width, channels]``, by the rules of `decode`.

        An array must be uint8 ``[H, W]``, ``[H, W, 1]``, ``[H, W, 3]`` (RGB) or ``[H, W, 4]`` (RGBA), else UsageError.
        A Pillow picture may still be lazy: PictureError if it cannot be loaded.
        """
        if not isinstance(image, Image.Image):
            shape, dtype = np.shape(image), getattr(image, "dtype", type(image).__name__)
            if dtype != np.uint8 or 0 in shape or len(shape) not in (2, 3) or shape[2:] not in ((), (1,), (3,), (4,)):
                raise UsageError(f"pixels must be uint8 [H, W] or [H, W, 1, 3 or 4], got {dtype} {list(shape)}")
            if shape == (self.height, self.width, self.channels):  # nothing to do, and Pillow would copy it twice
                return np.array(image)
            image = Image.fromarray(np.ascontiguousarray(image[..., 0] if shape[2:] == (1,) else image))
        with _reading():
            return self._fit(image, image.size)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and the schema number as JSON values."""
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocess:
        """Rebuild from `to_dict`. Raises ModelError for another schema and for missing, unknown or wrong values."""
        expected = cls().to_dict()
        if set(values) != set(expected) or values["schema"] != SCHEMA:
            raise ModelError(f"preprocess must have schema {SCHEMA} and the keys {list(expected)}, got {dict(values)}")
        try:
            return cls(**{name: value for name, value in values.items() if name != "schema"})
        except UsageError as error:
            raise ModelError(f"preprocess: {error}") from error

    def placement(self, width: int, height: int) -> tuple[Box, Box]:
        """Return the box that is kept of a picture of this size, as displayed, and the box of the result that it fills.

        Both are (left, top, right, bottom) in pixels.
        """
        kept, (w, h) = self._place((width, height), 1)
        left, top = (self.width - w) // 2, (self.height - h) // 2
        return kept, (left, top, left + w, top + h)

    def _place(self, size: Size, orientation: int) -> tuple[Box, tuple[int, int]]:
        """Return the box of the stored picture to keep and the (width, height) to bring it to, before it is turned."""
        (w, h), (tw, th) = size, ((self.width, self.height) if orientation < 5 else (self.height, self.width))
        if self.resize == "crop":
            scale = max(tw / w, th / h)
            keep_w, keep_h = min(w, tw / scale), min(h, th / scale)
            x, y = (w - keep_w) / 2, (h - keep_h) / 2
            if scale == 1:  # no resizing: half a pixel of offset would only blur
                x, y = x // 1, y // 1
            return (x, y, x + keep_w, y + keep_h), (tw, th)
        if self.resize == "pad":
            scale = min(tw / w, th / h)
            tw, th = max(1, round(w * scale)), max(1, round(h * scale))
        return (0, 0, w, h), (tw, th)

    def _scale(self, image: ImageFile.ImageFile, least: float, mode: str | None) -> tuple[Size, int]:
        """Have a JPEG decoded smaller where that is enough; return its exact size then, and the pixels in memory."""
        full = image.width * image.height
        if not isinstance(image, JpegImageFile) or not image.quantization:  # lossless JPEG has no such tables
            return image.size, full
        (left, top, right, bottom), (tw, th) = self._place(image.size, _orientation(image))
        # On 676 photographs brought to 64x64: mean difference 0.27 grey levels (p95 1.0), 1.6 times as fast.
        room = min((right - left) / (least * tw), (bottom - top) / (least * th))
        scale = next((s for s in (8, 4, 2) if s <= room), 1)
        size = image.width / scale, image.height / scale
        image.draft(mode, (image.width // scale, image.height // scale))
        return size, image.width * image.height if _one_scan(image) else full

    def _fit(self, image: Image.Image, stored: Size) -> NDArray[np.uint8]:
        image.load()
        orientation = _orientation(image)
        image = _to_8_bit(image)
        if self.channels == 1 and image.mode != "L":
            image = image.convert("L")
        box, size = self._place(stored, orientation)
        if box != (0, 0, *size):
            image = image.resize(size, Image.Resampling[self.filter.upper()], box)
        if orientation in _TURNS:  # after resizing, when there are fewer pixels to move
            image = image.transpose(_TURNS[orientation])
        if image.size != (self.width, self.height):  # "pad"
            left, top = (self.width - image.width) // 2, (self.height - image.height) // 2
            image = image.crop((-left, -top, self.width - left, self.height - top))  # beyond the edges all is black
        image = image.convert("RGB") if self.channels == 3 and image.mode == "L" else image
        return np.array(image).reshape(self.height, self.width, self.channels)


class _ThisThread(type):
    def __subclasscheck__(cls, _other: type) -> bool:
        return getattr(_THREAD, "reading", False)


class _Hushed(Warning, metaclass=_ThisThread):
    """The category of every warning in a thread that is inside `_reading`."""


@contextmanager
def _reading() -> Iterator[None]:
    """Turn whatever Pillow raises for bad data into PictureError, and keep its warnings quiet.

    warnings.catch_warnings swaps a global list, so that threads leave each other's filters behind; one filter that
    asks for the thread does not. What libjpeg and libtiff write to standard error themselves cannot be held back.
    """
    if not warnings.filters or warnings.filters[0][2] is not _Hushed:
        warnings.simplefilter("ignore", _Hushed)
    _THREAD.reading = True
    try:
        yield
    except PictureError:
        raise
    except Exception as error:  # OSError, SyntaxError, KeyError, zlib.error, MemoryError...: Pillow promises no fewer
        text = str(error) if " " in str(error) else repr(error)
        signs = re.search("truncat|not enough image data|reached eof|only got", text, re.IGNORECASE)
        ended = signs or {EOFError, IndexError, struct.error} & {type(error), type(error.__cause__)}
        raise PictureError("truncated" if ended else f"cannot be decoded: {text[:100]}") from error
    finally:
        _THREAD.reading = False


def _open(data: bytes | bytearray | memoryview) -> ImageFile.ImageFile:
    start = bytes(data[:16])
    for name, (magic, reader) in FORMATS.items():
        if re.match(magic, start, re.DOTALL):
            if name == "JPEG2000" and b"\xff\xd9" not in bytes(data):  # OpenJPEG may fill in what is missing
                raise PictureError("truncated")
            return reader(io.BytesIO(data))
    refused = re.match(_REFUSED, start, re.DOTALL)
    unknown = "not a picture" if start else "empty file"
    raise PictureError(f"format {refused.lastgroup} is not supported" if refused else unknown)


def _header(image: ImageFile.ImageFile) -> Header:
    best = 8 if isinstance(image, JpegImageFile) and _one_scan(image) else 1  # the target is not known here
    _check_pixels(image.size, (image.width // best) * (image.height // best))
    orientation = _orientation(image)
    turned = orientation >= 5 and not isinstance(image, TiffImageFile)  # its size is as displayed
    size = image.size[::-1] if turned else image.size
    frames = 1
    with suppress(Exception):  # a later frame is damaged: only the first is ever used
        frames = int(getattr(image, "n_frames", 1))
    return Header(str(image.format), image.mode, *size, frames, orientation)


def _check_pixels(full: tuple[int, int], pixels: int) -> None:
    if pixels > MAX_PIXELS:
        raise PictureError(f"too large: {full[0]}x{full[1]} pixels, limit {MAX_PIXELS // 10**6} megapixels")


def _one_scan(image: JpegImageFile) -> bool:
    """Whether libjpeg can decode line by line; if not, it holds the whole unscaled picture, whatever the scale."""
    stream = cast("io.BytesIO", image.fp)  # behind the first scan's header: count, 2 bytes per component, 3 bytes
    count = stream.getvalue()[stream.tell() - 4 - 2 * image.layers]
    return "progressive" not in image.info and count == image.layers


def _orientation(image: Image.Image) -> int:
    with suppress(Exception):  # corrupt EXIF is no reason to lose a picture
        # PNG's own getexif loads the pixels, since it may stand behind them: there, `inspect` does not see it.
        value = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
        return int(value) if value in _TURNS else 1
    return 1


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Return the loaded picture in mode L or RGB, by the rules at the top of this file."""
    if image.mode.startswith("I;16"):
        whole, rest = np.divmod(values := np.asarray(image), 257)
        levels = (whole + (rest > 128)).astype(np.uint8)  # round(v / 257); there are no ties
        levels[values == image.info.get("transparency", -1)] = 255
        return Image.fromarray(levels)
    if image.mode in ("I", "F"):
        ranges = {"F": (1, 255, 65535), "I": (65535,) if image.format == "PPM" else (255, 65535)}
        return _from_values(np.asarray(image), ranges[image.mode])
    if image.has_transparency_data:
        rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(rgba, mask=rgba)
        return white
    if image.mode == "LAB":
        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.buildTransform(*profiles, "LAB", "RGB").apply(image)
    return image if image.mode in ("L", "RGB") else image.convert("L" if image.mode == "1" else "RGB")


def _from_values(values: NDArray[Any], ranges: tuple[int, ...]) -> Image.Image:
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    ends = next(((0.0, top) for top in ranges if low >= 0 and high <= top), (low, high))
    rows = [(np.interp(np.where(np.isnan(row), low, row), ends, (0, 255)) + 0.5).astype(np.uint8) for row in values]
    return Image.fromarray(np.stack(rows))  # row by row, since all in float64 takes much memory
