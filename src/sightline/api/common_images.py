"""The images that two runs were both evaluated on, with each run's predictions, or for masks its mean IoU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sightline.data.recorded_images import ImageRow, map_groups
from sightline.data.targets import join_classes
from sightline.data.types import Split
from sightline.evaluation.label_thresholds import cross_fit_limits, list_thresholds
from sightline.evaluation.results import LabeledPredictions
from sightline.runs import folds
from sightline.runs.directory import RunDirectory
from sightline.tasks.protocol import find_task

COMPARED_SPLITS: tuple[Split, ...] = ("test", "validation")
NOT_EVALUATED = "they were not evaluated on the same split: evaluate both first"


@dataclass(frozen=True, slots=True)
class CommonImages:
    """The images of one split that two runs were both evaluated on.

    `rows` int64 [N, 2] are their rows in the predictions `first` and `second`; images are paired by content and class.
    `labels` [N] are the names of the true classes, and `predicted` the names that each run predicts; several labels are
    sorted and joined with ``;``. `groups` maps the path of each image to its group, where the first run has groups.
    `present`, bool, marks the classes that each run predicts for all its images, if both have several labels per image.
    """

    split: Split
    first: LabeledPredictions
    second: LabeledPredictions
    rows: NDArray[np.int64]
    labels: NDArray[np.str_]
    predicted: tuple[NDArray[np.str_], NDArray[np.str_]]
    groups: Mapping[str, str]
    present: tuple[NDArray[np.bool_], NDArray[np.bool_]] | None = None

    @property
    def has_label_sets(self) -> bool:
        """Whether one of the runs predicts several labels per image."""
        return self.first.labels.ndim == 2 or self.second.labels.ndim == 2


@dataclass(frozen=True, slots=True)
class CommonMasks:
    """The images of one split that two runs were both evaluated on, by content; at least one pixel has a class.

    `paths` are those of the first run, `ious` float64 [N, 2] the mean IoU of each image in each run, and `groups` maps
    the path of each image to its group, where the first run has groups. `is_whole`: neither split has other images.
    """

    split: Split
    paths: tuple[str, ...]
    ious: NDArray[np.float64]
    groups: Mapping[str, str]
    is_whole: bool


def find_common_images(first: RunDirectory, second: RunDirectory) -> CommonImages | None:
    """Return the test images that both runs were evaluated on, else the validation images; None without such a split.

    See `find_common_masks` for runs of masks.
    """
    for split in COMPARED_SPLITS:
        of_first, of_second = first.read_predictions(split), second.read_predictions(split)
        if of_first is not None and of_second is not None:
            return _pair_images(split, (first, second), (of_first, of_second))
    return None


def _pair_images(
    split: Split, runs: tuple[RunDirectory, RunDirectory], predictions: tuple[LabeledPredictions, LabeledPredictions]
) -> CommonImages:
    true = [_name_true_classes(of) for of in predictions]
    images = [run.read_data() or () for run in runs]
    # Without hashes, images are paired by path.
    contents = [_content_hashes(rows, split, labels) for rows, labels in zip(images, true, strict=True)]
    have_hashes = all(hashes is not None for hashes in contents)
    keys = [hashes if have_hashes and hashes else of.paths for hashes, of in zip(contents, predictions, strict=True)]
    rows = _pair_rows(keys, true)
    present = [_find_present(run, split, of) for run, of in zip(runs, predictions, strict=True)]
    first, second = (
        np.array(_name_sets(of.classes, chosen), np.str_)[own_rows]
        for of, chosen, own_rows in zip(predictions, present, rows.T, strict=True)
    )
    return CommonImages(
        split, *predictions, rows, np.array(true[0], np.str_)[rows[:, 0]], (first, second),
        map_groups(images[0]),
        (present[0], present[1]) if all(of.labels.ndim == 2 for of in predictions) else None,
    )  # fmt: skip


def _name_true_classes(predictions: LabeledPredictions) -> list[str]:
    if predictions.labels.ndim == 2:
        return _name_sets(predictions.classes, predictions.labels)
    return [predictions.classes[label] for label in predictions.labels]


def _name_sets(classes: Sequence[str], present: NDArray[np.bool_]) -> list[str]:
    names = np.array(classes, object)
    return [join_classes(names[row]) for row in present]


def _find_present(run: RunDirectory, split: Split, predictions: LabeledPredictions) -> NDArray[np.bool_]:
    """Return which classes a run predicts, bool [N, K]; with one label per image, the most probable class.

    With several labels, thresholds that were fitted on out-of-fold predictions are not applied to the same predictions;
    see `cross_fit_limits`.
    """
    p, classes = predictions.probabilities, predictions.classes
    if predictions.labels.ndim == 1:
        most_probable: NDArray[np.bool_] = p.argmax(1)[:, None] == np.arange(len(classes))
        return most_probable
    thresholds = run.read_thresholds()
    limits = list_thresholds(thresholds, classes)
    if thresholds is not None and split == "validation" and folds.is_folded(config := run.config):
        fold_by_path = folds.list_folds(run, config.split.folds)
        fold_of = np.array([fold_by_path.get(path, -1) for path in predictions.paths], np.int64)
        limits = cross_fit_limits(classes, p, predictions.labels, fold_of, thresholds, conservative=True).present
    return p >= limits


def _content_hashes(images: Sequence[ImageRow], split: Split, labels: Sequence[str]) -> list[str] | None:
    rows = [row for row in images if row.split == split]
    return [row.sha256 for row in rows] if [row.label for row in rows] == labels else None


def _pair_rows(keys: Sequence[Sequence[str]], labels: Sequence[Sequence[str]]) -> NDArray[np.int64]:
    """Return the rows of images with the same key and the same true classes in both runs: int64 [N, 2]."""
    rows_of, other_rows_of = map(_index_rows, keys, labels)
    pairs = [(row, other_rows_of[key]) for key, row in rows_of.items() if key in other_rows_of]
    return np.array(pairs, np.int64).reshape(-1, 2)


def _index_rows(keys: Iterable[str], labels: Sequence[str]) -> dict[tuple[str, str, int], int]:
    """Return the row of each image by its key, its true classes, and the number of earlier images with the same two."""
    occurrences: Counter[tuple[str, str]] = Counter()
    rows: dict[tuple[str, str, int], int] = {}
    for row, key in enumerate(zip(keys, labels, strict=True)):
        rows[*key, occurrences[key]] = row
        occurrences[key] += 1
    return rows


def find_common_masks(first: RunDirectory, second: RunDirectory) -> CommonMasks | str:
    """Return the test images that both runs were evaluated on, else the validation images, or why there are none."""
    if not all(find_task(run.config.model.task).targets.are_masks for run in (first, second)):
        return "only one of them predicts masks"
    for split in COMPARED_SPLITS:
        of_first, of_second = first.read_predictions(split), second.read_predictions(split)
        if of_first is None or of_second is None:
            continue
        if {*of_first.classes} != {*of_second.classes}:
            return "their classes differ"
        if of_first.mask_scores is None or of_second.mask_scores is None:
            return f"they lack the pixels of each {split} image: evaluate both again with --split {split}"
        return _pair_masks(split, (first, second), (of_first, of_second))
    return NOT_EVALUATED


def _pair_masks(
    split: Split, runs: tuple[RunDirectory, RunDirectory], predictions: tuple[LabeledPredictions, LabeledPredictions]
) -> CommonMasks | str:
    images = [run.read_data() or () for run in runs]
    contents = [{row.path: row.sha256 for row in rows} for rows in images]
    keys = [[hashes.get(path, path) for path in of.paths] for hashes, of in zip(contents, predictions, strict=True)]
    rows = _pair_rows(keys, [[""] * len(of.paths) for of in predictions])
    is_whole = len(rows) == len(predictions[0].paths) == len(predictions[1].paths)
    scores = [of.mask_scores.compute_iou() for of in predictions if of.mask_scores is not None]
    ious = np.stack([values[own] for values, own in zip(scores, rows.T, strict=True)], 1)
    rows, ious = rows[np.isfinite(ious).all(1)], ious[np.isfinite(ious).all(1)]
    if not len(rows):
        return "they have no image with a class in common"
    return CommonMasks(
        split, tuple(predictions[0].paths[row] for row in rows[:, 0]), ious,
        map_groups(images[0]), is_whole,
    )  # fmt: skip
