"""Predict masks with a loaded model, and write them: an indexed PNG file for each image, and its colors over it."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path, PurePath

from sightline import _io
from sightline.api.images import ImageLike, list_items, track_images
from sightline.api.loaded_model import LoadedModel
from sightline.api.options import Settings
from sightline.api.owned_png import is_owned_png, save_owned_png
from sightline.api.record_list import RecordList
from sightline.callbacks import Callback
from sightline.data.sources.filenames import fold_name
from sightline.errors import ImageError, OutputError, UsageError
from sightline.inference import stream
from sightline.inference.manifest import MAX_TILE
from sightline.inference.masks import MaskPrediction, encode_mask, overlay_image, predict_masks
from sightline.inference.predictor import Predictor
from sightline.inference.results import Thresholds
from sightline.inference.stream import InputItem
from sightline.progress import show_progress

OVERLAY_SUFFIX = ".overlay.png"
MAX_STEM_BYTES = 200  # of a name, which has at most 255 with its number and suffix
_OVERLAY_ENDING = re.compile(r"(\.overlay)+\Z")


class MaskModel(LoadedModel):
    """A loaded model that predicts masks, if that is its task."""

    def predict_masks(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        out: str | Path | None = None,
        tile: float | None = None,
        set: Settings = (),
        progress: bool = True,
        callback: Callback | None = None,
    ) -> RecordList[MaskPrediction]:
        """Predict the class of each pixel, with a model of ``model.task="segmentation"``.

        Args:
            images: As for `predict`.
            out: A folder to write each mask to, as ``<name>.png``, an indexed PNG whose values are the positions in
                `classes`, and its colors over the image, of at most 4096 pixels on the longer side, as
                ``<name>.overlay.png``. Files that Sightline wrote are replaced, others never.
            tile: Predict images of any size in overlapping tiles of the size that the network takes, cut from the
                image at this scale: 1 is its full resolution, 0 resizes the whole image instead. None is what
                ``input.tile`` was in training, by default 0.
            set: As for `predict`.
            progress: As for `predict`.
            callback: As for `predict`.

        Returns:
            One mask for each image, in order: `mask` is uint8 [H, W] at the size of the image, `areas` the fraction of
            its pixels that each class has, `quality` the expected IoU, and `decision` what a threshold for it decides;
            with `out`, `file` is the name of its file there.
            For a file that cannot be read, only its `error` is set.

        Raises:
            UsageError: If the model predicts no masks, or `tile` is not from 0 to 16.
            OutputError: If `out` cannot be written, or holds a file that would be replaced.

        Example:
            ```python
            masks = clf.predict_masks("street.jpg", out="masks")
            print(masks[0].mask.shape, masks[0].areas)
            ```
        """
        with show_progress(progress, callback) as display:
            masks = self.iter_masks(images, out=out, tile=tile, set=set, callback=display)
            return RecordList(masks, MaskPrediction.to_dict)

    def iter_masks(
        self,
        images: ImageLike | Iterable[ImageLike | stream.InputItem],
        *,
        out: str | Path | None = None,
        tile: float | None = None,
        set: Settings = (),
        callback: Callback | None = None,
    ) -> Iterator[MaskPrediction]:
        """Yield what `predict_masks` returns as it is ready, for any number of images: few are in memory at once.

        Args:
            images: As for `predict`; may be a generator.
            out: As for `predict_masks`.
            tile: As for `predict_masks`.
            set: As for `predict`.
            callback: Receives the progress events.
        """
        if not self.task.targets.are_masks:
            raise UsageError("This model classifies whole images: masks need one with model.task=segmentation.")
        scale = self.tile if tile is None else check_tile(tile)
        channels = self.predictor.preprocess.channels
        items = list_items(images, channels, set, callback)
        if out is None:
            masks = predict_masks(self.predictor, items, scale, self.thresholds)
        else:
            masks = write_masks(self.predictor, items, Path(out), scale, self.thresholds)
        if callback is None:
            return masks
        return track_images(masks, "predicting", images, channels, set, callback.on_progress, lambda _: 1)


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
    tile: float = 0.0,
    thresholds: Thresholds | None = None,
) -> Iterator[MaskPrediction]:
    """Yield the mask of each item as soon as its files are in `folder`: ``<name>.png`` and ``<name>.overlay.png``.

    The second image of a name gets ``<name>-2.png``; `file` of its prediction says so. Raises `OutputError` at the
    first file that cannot be written, or that exists and was not written here. `tile` is that of
    `inference.masks.predict_masks`.
    """
    folder = _io.output_path(folder)
    _io.refuse_links_in_run(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The folder {folder} for masks cannot be created: {error.strerror or error}.") from error
    return _write_each(predictor, items, folder, tile, thresholds)


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
        except ImageError as error:  # such as of a file that is gone since
            yield MaskPrediction(prediction.path, error=str(error))
            continue
        stem = choose_name(prediction.path, names)
        _save(folder / f"{stem}.png", encode_mask(prediction.mask, count))
        _save(folder / f"{stem}{OVERLAY_SUFFIX}", overlay)
        yield replace(prediction, file=f"{stem}.png")


def choose_name(path: str, taken: dict[str, int]) -> str:
    """Return the name of the files of an image without their suffix, and add it to those that are `taken`.

    `taken` has the last number of each name, in lower case: some file systems make no difference.

    >>> taken: dict[str, int] = {}
    >>> [choose_name(path, taken) for path in ("a/1.jpg", "b/1.jpg", "[0]", "a/X.jpg", "b/x.jpg")]
    ['1', '1-2', '0', 'X', 'x-2']
    """
    stem = _OVERLAY_ENDING.sub("", PurePath(path).stem.strip("[]"))  # else a mask had the name of an overlay
    stem = stem.encode(errors="ignore")[:MAX_STEM_BYTES].decode(errors="ignore") or "mask"
    name, number = stem, taken.get(fold_name(stem), 0) + 1
    while number > 1 and fold_name(name := f"{stem}-{number}") in taken:
        number += 1
    taken[fold_name(stem)] = number
    taken.setdefault(fold_name(name), 1)
    return name


def _save(path: Path, png: bytes) -> None:
    if path.exists() and not is_owned_png(path):
        raise OutputError(f"{path} exists and was not written by Sightline: choose another folder for the masks.")
    save_owned_png(path, png)
