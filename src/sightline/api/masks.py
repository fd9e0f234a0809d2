"""Write predicted masks: an indexed PNG file for each image, and its colors over it."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path, PurePath

from sightline import _io
from sightline.api.owned_png import save_owned_png
from sightline.data.sources.filenames import fold_name
from sightline.errors import ImageError, UsageError
from sightline.inference.inputs import InputItem
from sightline.inference.manifest import MAX_TILE
from sightline.inference.masks import MaskPrediction, encode_mask, overlay_image, predict_masks
from sightline.inference.predictor import Predictor
from sightline.inference.results import Thresholds

OVERLAY_SUFFIX = ".overlay.png"
MAX_STEM_BYTES = 200  # limit before the number and suffix; file systems allow 255
_OVERLAY_ENDING = re.compile(r"(\.overlay)+\Z")


def check_tile(tile: float) -> float:
    """Return `tile`; raises `UsageError` unless it is the scale of tiles, or 0."""
    if not 0 <= tile <= MAX_TILE:
        raise UsageError(
            f"tile is {tile:g}, expected the scale at which an image is cut into tiles, up to {MAX_TILE:g}, or 0 for "
            "none."
        )
    return float(tile)


def write_masks(
    predictor: Predictor,
    items: Iterable[InputItem],
    folder: Path,
    tile: float,
    thresholds: Thresholds | None,
) -> Iterator[MaskPrediction]:
    """Yield the mask of each item as soon as its files are in `folder`: ``<name>.png`` and ``<name>.overlay.png``.

    The second image with the same name gets ``<name>-2.png``, as `file` of its prediction states. Raises `OutputError`
    at the first file that cannot be written, or that exists and was not written here. `tile` is described in
    `inference.masks.predict_masks`.
    """
    return _write_each(predictor, items, _io.create_folder(folder, "the masks"), tile, thresholds)


def _write_each(
    predictor: Predictor, items: Iterable[InputItem], folder: Path, tile: float, thresholds: Thresholds | None
) -> Iterator[MaskPrediction]:
    pending: deque[InputItem] = deque()

    def remember(items: Iterable[InputItem]) -> Iterator[InputItem]:
        for item in items:
            pending.append(item)
            yield item

    names: dict[str, int] = {}
    for prediction in predict_masks(predictor, remember(items), tile, thresholds):
        item = pending.popleft()
        if prediction.mask is None:
            yield prediction
            continue
        count = len(predictor.classes)
        try:
            overlay = overlay_image(predictor.preprocess, item.read(), prediction.mask, count)
        except ImageError as error:  # e.g. if the file has been deleted meanwhile
            yield MaskPrediction(prediction.path, error=str(error))
            continue
        stem = choose_name(prediction.path, names)
        save_owned_png(folder / f"{stem}.png", encode_mask(prediction.mask, count))
        save_owned_png(folder / f"{stem}{OVERLAY_SUFFIX}", overlay)
        yield replace(prediction, file=f"{stem}.png")


def choose_name(path: str, taken: dict[str, int]) -> str:
    """Return the name of the files of an image without their suffix, and add it to `taken`.

    `taken` maps each name in lower case to its last number: some file systems ignore case.

    >>> taken: dict[str, int] = {}
    >>> [choose_name(path, taken) for path in ("a/1.jpg", "b/1.jpg", "[0]", "a/X.jpg", "b/x.jpg")]
    ['1', '1-2', '0', 'X', 'x-2']
    """
    stem = _OVERLAY_ENDING.sub("", PurePath(path).stem.strip("[]"))  # otherwise a mask could be named like an overlay
    stem = stem.encode(errors="ignore")[:MAX_STEM_BYTES].decode(errors="ignore") or "mask"
    name, number = stem, taken.get(fold_name(stem), 0) + 1
    while number > 1 and fold_name(name := f"{stem}-{number}") in taken:
        number += 1
    taken[fold_name(stem)] = number
    taken.setdefault(fold_name(name), 1)
    return name
