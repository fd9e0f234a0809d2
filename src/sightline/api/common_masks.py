"""The images that two segmentation runs were both evaluated on, with each run's mean IoU per image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sightline.api.common_images import COMPARED_SPLITS, index_rows
from sightline.data.types import Split
from sightline.evaluation.results import LabeledPredictions
from sightline.runs.directory import RunDirectory
from sightline.tasks.protocol import find_task

NOT_EVALUATED = "they were not evaluated on the same split: evaluate both first"


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
        return _pair_images(split, (first, second), (of_first, of_second))
    return NOT_EVALUATED


def _pair_images(
    split: Split, runs: tuple[RunDirectory, RunDirectory], predictions: tuple[LabeledPredictions, LabeledPredictions]
) -> CommonMasks | str:
    images = [run.read_data() or () for run in runs]
    contents = ({row.path: row.sha256 for row in rows} for rows in images)
    rows_of, other_rows_of = (
        index_rows([hashes.get(path, path) for path in of.paths], [""] * len(of.paths))
        for hashes, of in zip(contents, predictions, strict=True)
    )
    pairs = [(row, other_rows_of[key]) for key, row in rows_of.items() if key in other_rows_of]
    rows = np.array(pairs, np.int64).reshape(-1, 2)
    scores = [of.mask_scores.compute_iou() for of in predictions if of.mask_scores is not None]
    ious = np.stack([values[own] for values, own in zip(scores, rows.T, strict=True)], 1)
    rows, ious = rows[np.isfinite(ious).all(1)], ious[np.isfinite(ious).all(1)]
    if not len(rows):
        return "they have no image with a class in common"
    return CommonMasks(
        split, tuple(predictions[0].paths[row] for row in rows[:, 0]), ious,
        {row.path: row.group for row in images[0] if row.group},
        len(pairs) == len(predictions[0].paths) == len(predictions[1].paths),
    )  # fmt: skip
