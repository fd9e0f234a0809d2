"""Predicted masks: at the size of their images, as indexed PNG files with a palette, and as colors over an image."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from sightline.data.masks import VOID
from sightline.inference.predictor import Predictor
from sightline.inference.runner import predict_images
from sightline.inference.stream import InputItem, decode_item
from sightline.preprocessing import PreprocessingSpec, inspect_image

MAX_OVERLAY_SIDE = 4096  # pixels, as of any other preprocessed image


@dataclass(frozen=True, slots=True)
class MaskPrediction:
    """The predicted mask of one image, or the reason why there is none.

    Attributes:
        path: The path of the image, or its position, as in ``"[0]"``, if it came without one.
        mask: The position of the class of each pixel, uint8 [H, W], at the size of the image as displayed; 255 for what
            the model does not see, beyond its center crop. None with an `error`.
        areas: The fraction of the pixels of each class that the mask has, the largest first.
        error: Why there is no mask; None if there is one.
    """

    path: str
    mask: NDArray[np.uint8] | None = None
    areas: tuple[tuple[str, float], ...] = ()
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the path and the areas as JSON values; of an error only its reason."""
        if self.error is not None:
            return {"path": self.path, "error": self.error}
        return {"path": self.path, "areas": dict(self.areas)}


@dataclass(frozen=True, slots=True)
class _SizedImage:
    pixels: NDArray[np.uint8]
    width: int
    height: int


def predict_masks(predictor: Predictor, items: Iterable[InputItem]) -> Iterator[MaskPrediction]:
    """Yield the mask of each item, in order; `error` is the reason if there is none."""
    decode = partial(_decode_sized, predictor.preprocess)
    for batch in predict_images(predictor, items, decode, lambda sized: sized.pixels):
        for image in batch:
            if image.probabilities is None or image.decoded is None:
                yield MaskPrediction(image.item.path, error=image.error)
                continue
            mask = image.probabilities.argmax(-1).astype(np.uint8)
            mask = restore_size(predictor.preprocess, mask, image.decoded.width, image.decoded.height)
            yield MaskPrediction(image.item.path, mask, _measure_areas(mask, predictor.classes))


def _decode_sized(preprocess: PreprocessingSpec, item: InputItem) -> _SizedImage:
    content = item.read()
    if isinstance(content, bytes | bytearray | memoryview):
        header = inspect_image(content, preprocess.page, preprocess.max_megapixels)
        return _SizedImage(preprocess.decode(content), header.width, header.height)
    pixels = decode_item(preprocess, item)
    if isinstance(content, Image.Image):
        return _SizedImage(pixels, *ImageOps.exif_transpose(content).size)
    height, width = content.shape[:2]
    return _SizedImage(pixels, width, height)


def _measure_areas(mask: NDArray[np.uint8], classes: tuple[str, ...]) -> tuple[tuple[str, float], ...]:
    counts = np.bincount(mask.ravel(), minlength=256)[: len(classes)]
    order = np.argsort(-counts, kind="stable")
    return tuple((classes[k], float(counts[k] / mask.size)) for k in order if counts[k])


def restore_size(preprocess: PreprocessingSpec, mask: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """Return a mask uint8 [h, w] of preprocessed pixels at the size of their image, uint8 [height, width].

    It is the inverse of resizing: what "pad" added is cut off, and what "crop" cut off is `VOID`.
    """
    source, target = preprocess.compute_placement(width, height)
    left, top, right, bottom = (round(side) for side in source)
    content = Image.fromarray(mask).crop(tuple(map(round, target)))  # type: ignore[arg-type]  # four numbers
    canvas = Image.new("L", (width, height), VOID)
    canvas.paste(content.resize((right - left, bottom - top), Image.Resampling.NEAREST), (left, top))
    return np.array(canvas)


def make_palette(count: int) -> NDArray[np.uint8]:
    """Return a color for each of 256 values, uint8 [256, 3]: the colors of PASCAL VOC for `count` classes, else gray.

    Nearby values have distinct colors: the bits of a value are spread over the highest bits of the three channels.
    """
    palette = np.full((256, 3), 128, np.uint8)
    for value in range(1, count + 1):  # VOC's first color is black, its background
        color = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                color[channel] |= (value >> (3 * bit + channel) & 1) << (7 - bit)
        palette[value - 1] = color
    return palette


def encode_mask(mask: NDArray[np.uint8], count: int) -> bytes:
    """Return a mask uint8 [H, W] of `count` classes as an indexed PNG file with the colors of `make_palette`."""
    image = Image.fromarray(mask)
    image.putpalette(make_palette(count).tobytes())
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def overlay_mask(pixels: NDArray[np.uint8], mask: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """Return `pixels` uint8 [H, W, C] half covered by the colors of a mask [H, W]: uint8 [H, W, 3]."""
    covered = pixels // 2 + make_palette(count)[mask] // 2
    return np.where((mask == VOID)[..., None], pixels, covered)


def overlay_image(preprocess: PreprocessingSpec, content: Any, mask: NDArray[np.uint8], count: int) -> bytes:
    """Return an image, encoded or as pixels, under its mask as a PNG file; raises `ImageError`.

    It has the size of the mask, of which at most `MAX_OVERLAY_SIDE` pixels on the longer side; `preprocess` says which
    page of the image is read, and its range of values.
    """
    scale = min(1, MAX_OVERLAY_SIDE / max(mask.shape))
    height, width = (max(1, round(side * scale)) for side in mask.shape)
    if scale < 1:
        mask = np.array(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
    spec = preprocess.with_size(height, width)
    pixels = spec.decode(content) if isinstance(content, bytes | bytearray | memoryview) else spec.apply(content)
    file = io.BytesIO()
    Image.fromarray(overlay_mask(pixels, mask, count)).save(file, "PNG")
    return file.getvalue()
