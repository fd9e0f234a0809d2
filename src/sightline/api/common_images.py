"""The images that two runs were both evaluated on, with each run's predictions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sightline.data.recorded_images import ImageRow
from sightline.data.targets import join_classes
from sightline.data.types import Split
from sightline.evaluation.label_thresholds import cross_fit_limits, list_thresholds
from sightline.evaluation.results import LabeledPredictions
from sightline.runs import folds
from sightline.runs.directory import RunDirectory

COMPARED_SPLITS: tuple[Split, ...] = ("test", "validation")


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
    rows_of, other_rows_of = (
        index_rows(names if have_hashes and names is not None else of.paths, labels)
        for names, of, labels in zip(contents, predictions, true, strict=True)
    )
    pairs = [(row, other_rows_of[key]) for key, row in rows_of.items() if key in other_rows_of]
    rows = np.array(pairs, np.int64).reshape(-1, 2)
    present = [_find_present(run, split, of) for run, of in zip(runs, predictions, strict=True)]
    first, second = (
        np.array(_name_sets(of.classes, chosen), np.str_)[own_rows]
        for of, chosen, own_rows in zip(predictions, present, rows.T, strict=True)
    )
    return CommonImages(
        split, *predictions, rows, np.array(true[0], np.str_)[rows[:, 0]], (first, second),
        {row.path: row.group for row in images[0] if row.group},
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


def index_rows(keys: Iterable[str], labels: Sequence[str]) -> dict[tuple[str, str, int], int]:
    """Return the row of each image by its key, its true classes, and the number of earlier images with the same two."""
    occurrences: Counter[tuple[str, str]] = Counter()
    rows: dict[tuple[str, str, int], int] = {}
    for row, key in enumerate(zip(keys, labels, strict=True)):
        rows[*key, occurrences[key]] = row
        occurrences[key] += 1
    return rows
