"""A run's predictions for its images, as stored in the studio's table."""

from __future__ import annotations

import math

import numpy as np

from sightline.data.targets import LABEL_SETS, join_classes
from sightline.evaluation.label_thresholds import list_thresholds
from sightline.evaluation.results import LabeledPredictions
from sightline.evaluation.segmentation_metrics import MaskScores
from sightline.studio.features import RunModel
from sightline.studio.library import ImagePrediction

Predictions = dict[int, ImagePrediction]
"""Predictions by position of the image."""


def list_predictions(model: RunModel) -> Predictions:
    """Return a run's predictions for the images of its evaluated splits."""
    predictions: Predictions = {}
    for evaluated in model.predictions.values():
        if evaluated.mask_scores is not None:
            predictions |= _list_masks(model, evaluated, evaluated.mask_scores)
        elif model.predicts_masks:
            continue  # evaluated by a version that stored no pixels
        elif evaluated.labels.ndim == 2:
            predictions |= _list_label_sets(model, evaluated)
        else:
            predictions |= _list_classes(model, evaluated)
    return predictions


def _list_classes(model: RunModel, evaluated: LabeledPredictions) -> Predictions:
    predictions: Predictions = {}
    column_of = {name: i for i, name in enumerate(evaluated.classes)}
    best = evaluated.probabilities.argmax(axis=1)
    positions = model.find_positions(evaluated.paths)
    for position, column, row, energy in zip(
        positions, best, evaluated.probabilities, _list_energies(evaluated), strict=True
    ):
        if position is not None:
            label = column_of.get(model.index.images[position].label)
            of_label = 0.0 if label is None else float(row[label])
            predictions[position] = ImagePrediction(evaluated.classes[column], float(row[column]), of_label, energy)
    return predictions


def _list_label_sets(model: RunModel, evaluated: LabeledPredictions) -> Predictions:
    """Return a multi-label classifier's predictions for the images of a split.

    The confidence is that of the least certain decision about a class. The probability of the image's own label is that
    of its least probable part: a class that it has, or the absence of one that it has not.
    """
    thresholds = list_thresholds(model.run.directory.read_thresholds(), evaluated.classes)
    predictions: Predictions = {}
    for position, row, energy in zip(
        model.find_positions(evaluated.paths), evaluated.probabilities, _list_energies(evaluated), strict=True
    ):
        if position is None:
            continue
        predicted = [name for name, p, t in zip(evaluated.classes, row, thresholds, strict=True) if p >= t]
        known = {*LABEL_SETS.list_classes(model.index.images[position].label)} & {*evaluated.classes}
        own = LABEL_SETS.encode([join_classes(known)], evaluated.classes)[0]
        certainty, of_own = np.maximum(row, 1 - row), np.where(own, row, 1 - row)
        predictions[position] = ImagePrediction(
            join_classes(predicted), float(certainty.min()), float(of_own.min()), energy
        )
    return predictions


def _list_masks(model: RunModel, evaluated: LabeledPredictions, scores: MaskScores) -> Predictions:
    """Return the classes in the predicted masks of a split; the confidence is the quality of a mask."""
    names = np.array(evaluated.classes, object)
    rows = zip(
        model.find_positions(evaluated.paths), scores.find_predicted(), scores.quality.tolist(),
        scores.compute_iou().tolist(), strict=True,
    )  # fmt: skip
    return {
        position: ImagePrediction(join_classes(names[has]), quality, iou=iou if math.isfinite(iou) else None)
        for position, has, quality, iou in rows
        if position is not None
    }


def _list_energies(evaluated: LabeledPredictions) -> list[float | None]:
    """Return the out-of-distribution score of each image; None where there is none."""
    if evaluated.energies is None:
        return [None] * len(evaluated.paths)
    return [energy if math.isfinite(energy) else None for energy in evaluated.energies.tolist()]
