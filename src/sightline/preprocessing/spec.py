"""`PreprocessingSpec`: a value that defines how images become pixels; the package docstring has the rules."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, ClassVar, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile
from PIL.JpegImagePlugin import JpegImageFile

from sightline.errors import ModelError, UsageError
from sightline.preprocessing import bit_depth, formats, structure_limits
from sightline.preprocessing.array_hints import suggest_conversion
from sightline.preprocessing.formats import ImageBytes, ImageHeader, ValueRange
from sightline.preprocessing.pillow_errors import translate_errors

SCHEMA_VERSION = 2  # increase it whenever pixels change
MAX_SIDE = 4096  # limit on the output
MAX_MEGAPIXELS = 4000  # the largest limit that a spec may set
LARGE_PIXELS = 8_000_000  # images above this decode one at a time, so that memory stays bounded under many threads

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow converts color to grayscale

Resize = Literal["stretch", "crop", "pad"]
Interpolation = Literal["bilinear", "bicubic", "lanczos", "box", "nearest"]
Size: TypeAlias = tuple[float, float]  # width, height, in pixels
Box: TypeAlias = tuple[float, float, float, float]  # left, top, right, bottom

_TRANSPOSE_NAMES = (
    "FLIP_LEFT_RIGHT",
    "ROTATE_180",
    "FLIP_TOP_BOTTOM",
    "TRANSPOSE",
    "ROTATE_270",
    "TRANSVERSE",
    "ROTATE_90",
)
_TRANSPOSES = {orientation: Image.Transpose[name] for orientation, name in enumerate(_TRANSPOSE_NAMES, start=2)}
_large_image_lock: AbstractContextManager[Any] = threading.Lock()


def use_large_image_lock(lock: AbstractContextManager[Any]) -> None:
    """Use `lock`, shared by several processes, instead of this process's own to decode images above `LARGE_PIXELS`."""
    global _large_image_lock  # noqa: PLW0603  # process-wide, like memory
    _large_image_lock = lock


def fit_size(width: int, height: int, side: int) -> tuple[int, int]:
    """Return the width and the height of an image scaled to at most `side` pixels on each side.

    >>> fit_size(300, 200, 150), fit_size(30, 20, 150), fit_size(3000, 2, 150)
    ((150, 100), (30, 20), (150, 1))
    """
    scale = min(1.0, side / max(width, height))
    return max(1, round(scale * width)), max(1, round(scale * height))


def inspect_image(data: ImageBytes, page: int = 1, max_megapixels: int = 50) -> ImageHeader:
    """Read only the header of an encoded image: cheap, but the pixels may still be damaged or too many.

    `max_megapixels` matters for a later `page` of an animation, because earlier ones are decoded. Raises ImageError.
    """
    with translate_errors():
        return formats.read_header(formats.open_image(data, page, max_megapixels), data)


def decode_preview(
    data: ImageBytes, side: int, preprocess: PreprocessingSpec | None = None
) -> tuple[ImageHeader, NDArray[np.uint8]]:
    """Decode a quick grayscale preview: the header, and pixels uint8 [H, W] of at most `side` on each axis.

    `preprocess` sets the page and the value range. Takes half the work of `decode`: only the luma of a JPEG is
    decoded, at the smallest scale of at least `side`. Damage is still detected, as every bit is read. Raises ImageError
    like `inspect_image` and `decode`.
    """
    preprocess = preprocess or PreprocessingSpec()
    with translate_errors():
        image = formats.open_image(data, preprocess.page, preprocess.max_megapixels)
        header = formats.read_header(image, data)
        height, width = min(header.height, side), min(header.width, side)
        return header, preprocess.with_size(height, width, 1).decode_opened(image, data, min_scale=1, mode="L")[..., 0]


@dataclass(frozen=True, slots=True)
class PreprocessingSpec:
    """How every image becomes ``uint8 [height, width, channels]``; a value, stored with the run and the bundle.

    `channels` is 3 (RGB) or 1 (grayscale). `resize`: "stretch" resizes both axes to the target; "crop" resizes the
    shorter side and keeps the center; "pad" resizes the longer side and centers it on black. `interpolation` is the
    resampling kernel. `value_range`: the sample values (low, high) mapped to 0 and 255 for samples of more than 8 bits;
    None: see the package. `page`, from 1, is the page or frame to read. `max_megapixels`: an image that takes more,
    after JPEG scaling, is refused. Raises UsageError for a value out of range.
    """

    height: int = 224
    width: int = 224
    channels: Literal[1, 3] = 3
    resize: Resize = "stretch"
    interpolation: Interpolation = "bilinear"
    value_range: ValueRange | None = None
    page: int = 1
    max_megapixels: int = 50
    max_side: ClassVar[int] = MAX_SIDE

    def __post_init__(self) -> None:
        choices = {"channels": (1, 3), "resize": get_args(Resize), "interpolation": get_args(Interpolation)}
        maxima = {"height": self.max_side, "width": self.max_side, "page": 1_000_000, "max_megapixels": MAX_MEGAPIXELS}
        for name, allowed in choices.items():
            value = getattr(self, name)
            if type(value) is not type(allowed[0]) or value not in allowed:
                raise UsageError(f"{name} must be one of {allowed}, got {value!r}")
        for name, maximum in maxima.items():
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= maximum:
                raise UsageError(f"{name} must be an integer in 1..{maximum}, got {value!r}")
        if self.value_range is not None:
            object.__setattr__(self, "value_range", _check_range(self.value_range))

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of the pixels: (height, width, channels)."""
        return self.height, self.width, self.channels

    def decode(self, data: ImageBytes) -> NDArray[np.uint8]:
        """Decode an encoded image to a new array uint8 ``[height, width, channels]``; raises ImageError."""
        with translate_errors():
            return self.decode_opened(formats.open_image(data, self.page, self.max_megapixels), data)

    def decode_opened(
        self, image: ImageFile.ImageFile, data: ImageBytes, min_scale: float = 2, mode: str | None = None
    ) -> NDArray[np.uint8]:
        """Decode the image opened from `data`.

        A JPEG is decoded to at least `min_scale` times the target, and in `mode` ("L") if given.

        Raises whatever Pillow raises; outside this module, use `decode`.
        """
        full_size = image.size
        size, pixel_count = self._set_draft_scale(image, min_scale, mode)
        formats.check_pixel_count(*full_size, pixel_count, self.max_megapixels)
        formats.check_memory(image, data, self.max_megapixels)
        with _large_image_lock if pixel_count > LARGE_PIXELS else nullcontext():
            is_color = self.value_range is not None and formats.has_high_bit_depth_color(image)
            low_bytes = formats.open_low_bytes(data, self.page, image, self.max_megapixels) if is_color else None
            return self._convert_and_resize(
                image,
                size,
                partial(
                    bit_depth.convert_to_8_bit,
                    limits=self.value_range,
                    low_bytes=low_bytes,
                    high_bit_depth_color=is_color,
                ),
            )

    def sample_values(self, data: ImageBytes, count: int) -> NDArray[Any] | None:
        """Return at least `count` samples of an encoded image (or all), on a regular grid, without NaN and infinity.

        Their dtype is as decoded: uint16, int32 or float32, to which `value_range` applies. None for an image of 8 bits
        or fewer. Raises ImageError.
        """
        with translate_errors():
            image = formats.open_image(data, self.page, self.max_megapixels)
            formats.check_pixel_count(*image.size, image.width * image.height, self.max_megapixels)
            formats.check_memory(image, data, self.max_megapixels)
            if not formats.has_high_bit_depth(image):
                return None
            with _large_image_lock if image.width * image.height > LARGE_PIXELS else nullcontext():
                low_bytes = formats.open_low_bytes(data, self.page, image, self.max_megapixels)
                image.load()
                values = bit_depth.get_high_bit_depth_samples(image, low_bytes)
            step = max(1, math.isqrt(values.shape[0] * values.shape[1] // count))
            sampled = values[::step, ::step].ravel()
            finite: NDArray[Any] = sampled[np.isfinite(sampled)]
            return finite

    def apply(self, image: Image.Image | NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Preprocess an image in memory to a new array uint8 ``[height, width, channels]``, with the rules of `decode`.

        An array must be uint8 ``[H, W]``, ``[H, W, 1]``, ``[H, W, 3]`` (RGB) or ``[H, W, 4]`` (RGBA), else UsageError.
        Raises ImageError for a lazy Pillow image that cannot be loaded.
        """
        if not isinstance(image, Image.Image):
            shape, dtype = getattr(image, "shape", ()), getattr(image, "dtype", type(image).__name__)
            if dtype != np.uint8 or 0 in shape or len(shape) not in (2, 3) or shape[2:] not in ((), (1,), (3,), (4,)):
                row_hint = (
                    ": for a row of pixels, use x.reshape(height, width)" if len(shape) == 1 and 0 not in shape else ""
                )
                raise UsageError(
                    f"pixels must be uint8 [H, W] or [H, W, 1, 3 or 4], got {dtype} {list(shape)}"
                    f"{suggest_conversion(image) or row_hint}"
                )
            if shape == (self.height, self.width, self.channels):  # avoids two copies by Pillow
                return np.array(image)
            image = Image.fromarray(np.ascontiguousarray(image[..., 0] if shape[2:] == (1,) else image))
        with translate_errors():
            return self._convert_and_resize(
                image, image.size, partial(bit_depth.convert_to_8_bit, limits=self.value_range)
            )

    def convert(self, content: ImageBytes | Image.Image | NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the pixels of an encoded image, as `decode` does, or of one in memory, as `apply` does."""
        return self.decode(content) if isinstance(content, ImageBytes) else self.apply(content)

    def apply_to_mask(self, mask: NDArray[np.uint8], outside: int) -> NDArray[np.uint8]:
        """Resize a mask uint8 [H, W] as `decode` resizes its image, to uint8 [height, width].

        Values are not mixed: each pixel takes the value of the nearest one. Pixels beyond the image ("pad") become
        `outside`.
        """
        box, size = self._compute_boxes((mask.shape[1], mask.shape[0]), 1)
        resized = Image.fromarray(mask).resize(size, Image.Resampling.NEAREST, box)
        canvas = Image.new("L", (self.width, self.height), outside)
        canvas.paste(resized, ((self.width - resized.width) // 2, (self.height - resized.height) // 2))
        return np.array(canvas)

    def with_size(self, height: int, width: int, channels: Literal[1, 3] = 3) -> PreprocessingSpec:
        """Return a spec with the same page and value range that stretches images to another size."""
        return PreprocessingSpec(
            height, width, channels, value_range=self.value_range, page=self.page, max_megapixels=self.max_megapixels
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and the schema version as JSON values."""
        return {
            "schema": SCHEMA_VERSION,
            **asdict(self),
            "value_range": None if self.value_range is None else list(self.value_range),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PreprocessingSpec:
        """Restore from `to_dict`. Raises ModelError for another schema and for missing, unknown or invalid values."""
        expected = cls().to_dict()
        if (schema := values.get("schema")) != SCHEMA_VERSION:
            raise ModelError(
                f"preprocess has the schema {schema!r}; this version of Sightline reads {SCHEMA_VERSION} only"
            )
        if set(values) != set(expected):
            raise ModelError(f"preprocess must have the keys {list(expected)}, got {dict(values)}")
        try:
            return cls(**{name: value for name, value in values.items() if name != "schema"})
        except UsageError as error:
            raise ModelError(f"preprocess: {error}") from error

    def compute_placement(self, width: int, height: int) -> tuple[Box, Box]:
        """Return the box kept from an image of this displayed size, and the box that it fills in the output.

        Both are (left, top, right, bottom) in pixels.
        """
        source_box, (w, h) = self._compute_boxes((width, height), 1)
        left, top = (self.width - w) // 2, (self.height - h) // 2
        return source_box, (left, top, left + w, top + h)

    def cut_padding(self, values: NDArray[Any], width: int, height: int) -> NDArray[Any]:
        """Return the part of `values` [height, width, ...], one per output pixel, that shows the image, not padding."""
        left, top, right, bottom = map(round, self.compute_placement(width, height)[1])
        return values[top:bottom, left:right]

    def _compute_boxes(self, size: Size, orientation: int) -> tuple[Box, tuple[int, int]]:
        """Return the box of the stored image to keep and the (width, height) to resize it to, before rotation."""
        (w, h), (tw, th) = size, ((self.width, self.height) if orientation < 5 else (self.height, self.width))
        if self.resize == "crop":
            scale = max(tw / w, th / h)
            keep_w, keep_h = min(w, tw / scale), min(h, th / scale)
            x, y = (w - keep_w) / 2, (h - keep_h) / 2
            if scale == 1:  # no resizing, so an offset of half a pixel would only blur
                x, y = x // 1, y // 1
            return (x, y, x + keep_w, y + keep_h), (tw, th)
        if self.resize == "pad":
            scale = min(tw / w, th / h)
            tw, th = max(1, round(w * scale)), max(1, round(h * scale))
        return (0, 0, w, h), (tw, th)

    def _set_draft_scale(self, image: ImageFile.ImageFile, min_scale: float, mode: str | None) -> tuple[Size, int]:
        """Set the smallest sufficient decoding scale of a JPEG; return its exact size and the pixels in memory."""
        full_pixels = image.width * image.height
        if not isinstance(image, JpegImageFile) or not image.quantization:  # lossless JPEG has no quantization tables
            return image.size, full_pixels
        (left, top, right, bottom), (tw, th) = self._compute_boxes(image.size, formats.read_orientation(image))
        # On 676 photographs resized to 64x64: mean difference 0.27 gray levels (p95 1.0), 1.6 times as fast.
        max_scale = min((right - left) / (min_scale * tw), (bottom - top) / (min_scale * th))
        scale = next((s for s in (8, 4, 2) if s <= max_scale), 1)
        size = image.width / scale, image.height / scale
        if scale > 1 or mode is not None:
            image.draft(mode, (image.width // scale, image.height // scale))
        return size, image.width * image.height if formats.has_single_scan(image) else full_pixels

    def _convert_and_resize(
        self, image: Image.Image, stored_size: Size, convert: Callable[[Image.Image], Image.Image]
    ) -> NDArray[np.uint8]:
        image.load()
        orientation = formats.read_orientation(image)
        image = convert(image)
        if self.channels == 1 and image.mode != "L":
            image = image.convert("L")
        box, size = self._compute_boxes(stored_size, orientation)
        if box != (0, 0, *size):
            image = image.resize(size, Image.Resampling[self.interpolation.upper()], box)
        if orientation in _TRANSPOSES:  # after resizing, as fewer pixels are moved
            image = image.transpose(_TRANSPOSES[orientation])
        if image.size != (self.width, self.height):  # "pad"
            left, top = (self.width - image.width) // 2, (self.height - image.height) // 2
            image = image.crop((-left, -top, self.width - left, self.height - top))  # black outside the image
        image = image.convert("RGB") if self.channels == 3 and image.mode == "L" else image
        return np.array(image).reshape(self.height, self.width, self.channels)


class WholeImageSpec(PreprocessingSpec):
    """How to decode a whole image that is too large for a network: sides may be as long as those of any image."""

    __slots__ = ()
    max_side: ClassVar[int] = structure_limits.MAX_SIDE


def _check_range(limits: Any) -> ValueRange:
    """Return two finite, increasing numbers as floats; raises UsageError for anything else."""
    are_numbers = isinstance(limits, list | tuple) and all(type(v) in (int, float) and math.isfinite(v) for v in limits)
    if not are_numbers or len(limits) != 2 or not limits[0] < limits[1]:
        raise UsageError(f"value_range must be two numbers [low, high] with low < high, got {limits!r}")
    return float(limits[0]), float(limits[1])
