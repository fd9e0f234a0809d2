"""Cross-validation of a run: one nested run per fold, and its predictions for the images that it held out.

The run itself trains on all images, so none is left to choose its epoch, the penalty of its head and its temperature.
The epoch and the penalty are medians over the folds. Temperature, thresholds and metrics come from the
out-of-fold predictions, which replace a validation split; see `mask_folds` for masks.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline.callbacks import EpochRecord
from sightline.config import RunConfig, SplitConfig
from sightline.data.checks import leakage
from sightline.data.checks.leakage import LeakKind
from sightline.data.targets import list_leaf_classes
from sightline.data.types import ImageRecord, Index
from sightline.errors import ModelError, plural
from sightline.evaluation.results import LabeledPredictions
from sightline.inference.predictor import ModelOutputs, Outputs
from sightline.runs import mask_folds
from sightline.runs.directory import RunDirectory
from sightline.tasks.protocol import Task, find_task

FOLDER = "folds"
FEW_IMAGES = 100  # images per class; with fewer, `train` mentions folds


def is_folded(config: RunConfig) -> bool:
    """Return whether a run trains on all images, after a run for each fold."""
    return bool(config.split.folds) and config.split.fold is None


def mention_folds(images: Sequence[ImageRecord], config: RunConfig) -> list[str]:
    """Return a sentence that recommends folds to a run with few images of a class, and without a validation split.

    A test split of the source is in no fold. Folds cannot evaluate a class with a single image.
    """
    task, splits = find_task(config.model.task), {image.split for image in images}
    if config.split.folds or not task.supports_folds or config.train.time_limit or "validation" in splits:
        return []
    labels = [image.label for image in images if image.split != "test"]
    counts = Counter(chain.from_iterable(list_leaf_classes(task.targets, labels)))
    small = [label for label, count in counts.items() if 1 < count < FEW_IMAGES]
    if not small:
        return []
    label = min(small, key=lambda label: counts[label])
    outside = " outside the test split" if "test" in splits else ""
    few = f"class {label!r} has only {plural(counts[label], 'image')}{outside}"
    return [f"{few}: with --folds 5, all images{outside} are used both for the metrics and for training"]


def get_fold_path(run: RunDirectory, fold: int) -> Path:
    """Return the directory of the run that holds out `fold`."""
    return run.path / FOLDER / str(fold)


def list_runs(run: RunDirectory, folds: int) -> list[RunDirectory]:
    """Return the runs of all folds."""
    return [RunDirectory.open(get_fold_path(run, fold)) for fold in range(folds)]


def select_images(index: Index, config: SplitConfig) -> Index:
    """Return the images of a fold's run: without a test split of the source, which is in no fold."""
    if config.fold is None or not any(image.split == "test" for image in index.images):
        return index
    return index.select([i for i, image in enumerate(index.images) if image.split != "test"])


def apply_choices(run: RunDirectory, config: RunConfig) -> RunConfig:
    """Return the settings with which the final model is trained: the median best epoch and penalties of the folds."""
    if not is_folded(config):
        return config
    histories, epochs = [], []
    for fold_run in list_runs(run, config.split.folds):
        histories.append(fold_run.read_history())
        epochs.append(fold_run.result.get("best_epoch"))
    known = [epoch for epoch in epochs if epoch is not None]
    early_stopping = replace(config.train.early_stopping, epoch=statistics.median_low(known) if known else None)
    stages = tuple(
        replace(stage, penalty=_find_median_penalty(histories, stage.name)) if stage.is_solved else stage
        for stage in config.train.stages
    )
    return replace(config, train=replace(config.train, early_stopping=early_stopping, stages=stages))


def _find_median_penalty(histories: Sequence[Sequence[EpochRecord]], stage: str) -> float | None:
    penalties = [r.penalty for history in histories for r in history if r.stage == stage and r.penalty is not None]
    return statistics.median_low(penalties) if penalties else None


def collect_logits(
    run: RunDirectory, folds: int, paths: Sequence[str], classes: tuple[str, ...]
) -> NDArray[np.float32]:
    """Return the logits float32 [N, K] of the images at `paths`, each by the model that held it out, at temperature 1.

    The logits are computed by `Task.deactivate`.
    """
    task = find_task(run.config.model.task)
    logits: dict[str, NDArray[np.float32]] = {}
    for fold_run in list_runs(run, folds):
        predictions = fold_run.read_predictions("test")
        if predictions is None:
            continue  # a fold without images
        temperature = float(fold_run.result["temperature"])
        values = temperature * task.deactivate(_sort_classes(predictions, classes, fold_run))
        logits |= dict(zip(predictions.paths, values, strict=True))
    missing = next((path for path in paths if path not in logits), None)
    if missing is not None:
        raise ModelError(f"No fold of {run.path} predicted {missing}: train the run again with --force.")
    return np.stack([logits[path] for path in paths])


def list_folds(run: RunDirectory, folds: int) -> dict[str, int]:
    """Return the fold of each image that a fold held out, by path."""
    predictions = [fold_run.read_predictions("test") for fold_run in list_runs(run, folds)]
    return {path: fold for fold, values in enumerate(predictions) if values is not None for path in values.paths}


def find_leaked_contents(run: RunDirectory, folds: int) -> dict[str, LeakKind]:
    """Return the contents of images predicted by a model that was trained on the same or a nearly identical image."""
    leaked: dict[str, LeakKind] = {}
    for fold_run in list_runs(run, folds):
        leaked |= leakage.leaked_contents(fold_run.read_leaks(), "test")
    return leaked


def _sort_classes(predictions: LabeledPredictions, classes: tuple[str, ...], run: RunDirectory) -> NDArray[np.float32]:
    if predictions.classes != classes:
        raise ModelError(
            f"The classes of the fold {run.path} are not those of its run: train the run again with --force."
        )
    return predictions.probabilities


def make_outputs(task: Task, logits: NDArray[np.float32], labels: NDArray[Any]) -> ModelOutputs:
    """Return logits float32 [N, K] as the outputs of a model, without features: float32 [N, 0]."""
    return ModelOutputs(Outputs(task.activate(logits), logits, np.zeros((len(logits), 0), np.float32)), labels)


def read_outputs(run: RunDirectory, paths: Sequence[str], labels: NDArray[Any]) -> ModelOutputs:
    """Return the calibrated outputs for the validation images at `paths`, as stored in the run."""
    task, predictions = find_task(run.config.model.task), run.read_predictions("validation")
    if task.targets.are_masks:
        return mask_folds.read_collected(run, paths, labels, () if predictions is None else predictions.classes)
    rows = {} if predictions is None else {path: number for number, path in enumerate(predictions.paths)}
    if predictions is None or not all(path in rows for path in paths):
        raise ModelError(
            f"The predictions of {run.path} for its validation images are missing or incomplete: train it with --force."
        )
    return make_outputs(task, task.deactivate(predictions.probabilities[[rows[path] for path in paths]]), labels)
