"""Predicted masks: at the size of their images, as indexed PNG files with a palette, and as overlays of an image."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sightline.data.batches import iterate_slices
from sightline.data.masks import VOID
from sightline.errors import ImageError
from sightline.inference.inputs import InputItem
from sightline.inference.mask_colors import make_palette
from sightline.inference.mask_quality import decide_mask, estimate_iou
from sightline.inference.predictor import NOT_FINITE_REASON, Predictor
from sightline.inference.results import DecisionKind, Prediction, Thresholds
from sightline.inference.runner import call_padded, choose_batch_size, decode_images, predict_images
from sightline.inference.stream import SizedImage, choose_threads, decode_sized, find_size
from sightline.inference.tiling import predict_tiled, scale_spec
from sightline.preprocessing import PreprocessingSpec, encode_png, fit_size
from sightline.preprocessing.spec import MAX_SIDE


@dataclass(frozen=True, slots=True, eq=False)  # `==` of arrays returns an array
class MaskPrediction:
    """The predicted mask of one image, or the reason why there is none.

    Attributes:
        path: The path of the image, or its position, as in ``"[0]"``, if it came without one.
        mask: The class index of each pixel, uint8 [H, W], at the size of the image as displayed; 255 outside of the
            center crop, which the model does not see. None with an `error`.
        areas: The fraction of the pixels of each class in the mask, largest first.
        quality: The expected IoU of the mask with the true one, in [0, 1]; None with an `error`.
        decision: Whether the mask is accepted, ``"mask"``, or the model abstains, ``"abstain"``; None without a
            threshold.
        error: Why there is no mask; None if there is one.
        file: The name of the file with the mask; None if it was not written.
    """

    path: str
    mask: NDArray[np.uint8] | None = field(default=None, repr=False)
    areas: tuple[tuple[str, float], ...] = ()
    quality: float | None = None
    decision: DecisionKind | None = None
    error: str | None = None
    file: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return path, areas, quality, and decision and file if any, as JSON values; for an error, its reason."""
        if self.error is not None:
            return {"path": self.path, "error": self.error}
        more = {name: value for name, value in (("decision", self.decision), ("file", self.file)) if value is not None}
        return {"path": self.path, "areas": dict(self.areas), "quality": self.quality} | more


@dataclass(frozen=True, slots=True, eq=False)
class PixelPrediction(Prediction):
    """The prediction of a segmentation model, with its `mask` uint8 [h, w] and `probabilities` float32 [h, w, K].

    Both cover all pixels of the network's input; `probabilities` are None unless requested.
    """

    mask: NDArray[np.uint8] | None = None
    probabilities: NDArray[np.float32] | None = None

    @classmethod
    def from_prediction(cls, prediction: Prediction, probabilities: NDArray[np.float32]) -> Self:
        """Return a prediction with the probabilities of all pixels."""
        values = {field.name: getattr(prediction, field.name) for field in fields(prediction)}
        return cls(**values, mask=probabilities.argmax(-1).astype(np.uint8), probabilities=probabilities)


def predict_masks(
    predictor: Predictor, items: Iterable[InputItem], tile: float = 0.0, thresholds: Thresholds | None = None
) -> Iterator[MaskPrediction]:
    """Yield the mask of each item, in order; `error` is the reason if there is no mask.

    An image is resized to the input size of the network or, with `tile`, predicted in tiles cut at this scale.
    `thresholds` decide whether a mask is accepted.
    """
    if tile:
        yield from _predict_in_tiles(predictor, items, tile, thresholds)
        return
    preprocess = predictor.preprocess
    decode = partial(decode_sized, preprocess)
    items, threads = choose_threads(items)
    for batch in predict_images(predictor, items, decode, lambda sized: sized.pixels, threads=threads):
        for image in batch:
            if image.probabilities is None or image.decoded is None:
                yield MaskPrediction(image.item.path, error=image.error)
                continue
            size = image.decoded.width, image.decoded.height
            mask = restore_size(preprocess, image.probabilities.argmax(-1).astype(np.uint8), *size)
            quality = estimate_iou(preprocess.cut_padding(image.probabilities, *size))
            yield describe_mask(image.item.path, mask, quality, predictor.classes, thresholds)


def describe_mask(
    path: str, mask: NDArray[np.uint8], quality: float, classes: tuple[str, ...], thresholds: Thresholds | None
) -> MaskPrediction:
    """Return the prediction for a mask uint8 [H, W] at the size of its image, with its areas and decision."""
    decision = decide_mask(quality, thresholds)
    return MaskPrediction(
        path, mask, _measure_areas(mask, classes), quality, None if decision is None else decision.decision
    )


def _predict_in_tiles(
    predictor: Predictor, items: Iterable[InputItem], scale: float, thresholds: Thresholds | None
) -> Iterator[MaskPrediction]:
    preprocess, size = predictor.preprocess, choose_batch_size(predictor.preprocess.shape)

    def compute(tiles: NDArray[np.uint8]) -> Iterator[NDArray[np.float32]]:
        for rows in iterate_slices(len(tiles), size):
            probabilities = call_padded(predictor.probabilities, tiles[rows], min(size, len(tiles)))
            if not np.isfinite(probabilities).all():
                raise ImageError(NOT_FINITE_REASON)
            yield from probabilities

    decode = partial(_decode_scaled, preprocess, scale)
    with closing(decode_images(items, decode, 1, 1)) as images:  # whole images are large
        for image in images:
            path, sized = image.item.path, image.decoded
            if sized is None:
                yield MaskPrediction(path, error=image.error)
                continue
            try:
                tiled = predict_tiled(compute, sized.pixels, preprocess, len(predictor.classes))
            except ImageError as error:
                yield MaskPrediction(path, error=str(error))
                continue
            mask = resize_mask(tiled.mask, sized.width, sized.height)
            yield describe_mask(path, mask, tiled.quality, predictor.classes, thresholds)


def _decode_scaled(preprocess: PreprocessingSpec, scale: float, item: InputItem) -> SizedImage:
    """Return the pixels of a whole image at `scale`, and its size."""
    content = item.read()
    width, height = find_size(preprocess, content)
    return decode_sized(scale_spec(preprocess, width, height, scale), replace(item, read=lambda: content))


def _measure_areas(mask: NDArray[np.uint8], classes: tuple[str, ...]) -> tuple[tuple[str, float], ...]:
    """Return the fraction of the pixels of a mask [H, W] for each class in it, largest first."""
    counts = np.bincount(mask.ravel(), minlength=256)[: len(classes)]
    order = np.argsort(-counts, kind="stable")
    return tuple((classes[k], float(counts[k] / mask.size)) for k in order if counts[k])


def restore_size(preprocess: PreprocessingSpec, mask: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """Resize a mask uint8 [h, w] of preprocessed pixels to the size of the image, uint8 [height, width].

    This inverts the preprocessing: the padding of "pad" is cut off, and the area that "crop" cut off is `VOID`.
    """
    source, target = preprocess.compute_placement(width, height)
    left, top = min(round(source[0]), width - 1), min(round(source[1]), height - 1)
    right, bottom = max(round(source[2]), left + 1), max(round(source[3]), top + 1)  # at least a pixel of a thin image
    content = Image.fromarray(mask).crop(tuple(map(round, target)))  # type: ignore[arg-type]  # four numbers
    canvas = Image.new("L", (width, height), VOID)
    canvas.paste(content.resize((right - left, bottom - top), Image.Resampling.NEAREST), (left, top))
    return np.array(canvas)


def resize_mask(mask: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """Resize a mask uint8 [h, w] of a whole image to the size of the image, with the nearest pixels."""
    if mask.shape == (height, width):
        return mask
    return np.array(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))


def encode_runs(mask: NDArray[np.uint8]) -> dict[int, list[int]]:
    """Return the run lengths of each value of a mask [H, W], in COCO's uncompressed run-length encoding.

    Pixels are counted column by column, in alternating runs: first of other values (perhaps 0), then of this value.

    >>> encode_runs(np.array([[0, 1], [0, 1], [2, 1]], np.uint8))
    {0: [0, 2, 4], 1: [3, 3], 2: [2, 1, 3]}
    """
    flat = mask.ravel(order="F")
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    ends, values = np.append(starts[1:], flat.size), flat[starts]
    runs = {}
    for value in np.unique(values).tolist():
        edges = np.stack([starts[values == value], ends[values == value]], 1).ravel()
        counts = np.diff(edges, prepend=0).tolist()
        runs[value] = counts if edges[-1] == flat.size else [*counts, int(flat.size - edges[-1])]
    return runs


def encode_mask(mask: NDArray[np.uint8], count: int, *, is_layer: bool = False) -> bytes:
    """Return a mask uint8 [H, W] of `count` classes as an indexed PNG file with the colors of `make_palette`.

    In a layer, which is shown over the image, pixels without a class are transparent.
    """
    image = Image.fromarray(mask)
    image.putpalette(make_palette(count).tobytes())
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True, **({"transparency": VOID} if is_layer else {}))
    return file.getvalue()


def overlay_mask(pixels: NDArray[np.uint8], mask: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """Blend `pixels` uint8 [H, W, C] equally with the colors of a mask [H, W]: uint8 [H, W, 3]."""
    covered = pixels // 2 + make_palette(count)[mask] // 2
    return np.where((mask == VOID)[..., None], pixels, covered)


def overlay_image(preprocess: PreprocessingSpec, content: Any, mask: NDArray[np.uint8], count: int) -> bytes:
    """Return a PNG file of an image, encoded or as pixels, with its mask over it; raises `ImageError`.

    It has the size of the mask, reduced to at most `MAX_SIDE` pixels on the longer side; `preprocess` determines
    which page of the image is read, and its range of values.
    """
    mask = shrink_mask(mask)
    pixels = preprocess.with_size(*mask.shape).convert(content)
    return encode_png(overlay_mask(pixels, mask, count))


def shrink_mask(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Shrink a mask [H, W] to the size of its overlay: at most `MAX_SIDE` pixels on the longer side."""
    height, width = mask.shape
    return resize_mask(mask, *fit_size(width, height, MAX_SIDE))
