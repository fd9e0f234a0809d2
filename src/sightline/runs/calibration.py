"""The temperature of a trained model, and the logits of held-out images that it is fitted to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import backend
from sightline.data.dataset import DecodedDataset
from sightline.data.types import Subset
from sightline.inference.predictor import ModelOutputs
from sightline.inference.runtimes.keras import KerasPredictor
from sightline.models.head import TEMPERATURE_LAYER
from sightline.preprocessing import PreprocessingSpec
from sightline.runs import folds, mask_folds
from sightline.runs.directory import RunDirectory
from sightline.runs.network_setup import PreparedRun
from sightline.tasks.protocol import Task, find_task
from sightline.training.loop import FitResult


@dataclass(frozen=True, slots=True)
class Calibrated:
    """The `temperature` of a model, and the `logits` of held-out images divided by it, float32 [N, K].

    `other_outputs` replace the model's own outputs for the validation split: the outputs of the folds, or outputs from
    before the head was fitted to these images. None if the model's own outputs are evaluated.
    """

    temperature: float
    logits: NDArray[np.float32]
    other_outputs: ModelOutputs | None = None


def calibrate(
    run: RunDirectory, prepared: PreparedRun, model: Any, fit_result: FitResult, held_out: Subset
) -> Calibrated:
    """Set the temperature of the Keras model of `run`; `held_out` are the images of its validation split or folds."""
    config, data, labels = prepared.config, prepared.data, held_out.labels
    task = find_task(config.model.task)
    fold_runs = folds.list_runs(run, config.split.folds) if folds.is_folded(config) else []
    if fold_runs and task.targets.are_masks:
        outputs = mask_folds.collect_outputs(fold_runs, held_out.paths, labels, data.classes)
        temperature = set_temperature(model, mask_folds.find_temperature(fold_runs))
        return Calibrated(temperature, outputs.pixel_logits, outputs)
    if fold_runs:
        logits = folds.collect_logits(run, config.split.folds, held_out.paths, data.classes)
    elif task.targets.are_masks:
        logits, labels = _sample_pixel_logits(task, model, data)
    elif fit_result.is_refit and fit_result.validation_logits is not None:
        logits = fit_result.validation_logits  # from before the model was fitted to these images
    else:
        logits = _collect_validation_logits(task, model, data, fit_result.validation_logits, config.train.precision)
    temperature = (calibrate_temperature(task, model, logits, labels) if config.bundle.calibrate else None) or 1.0
    logits = logits / np.float32(temperature)
    has_other_logits = bool(fold_runs) or fit_result.is_refit  # logits from other weights
    return Calibrated(temperature, logits, folds.make_outputs(task, logits, labels) if has_other_logits else None)


def calibrate_temperature(task: Task, model: Any, logits: NDArray[np.float32], labels: NDArray[Any]) -> float | None:
    """Fit the temperature on validation images, set it in the Keras model's graph, and return it.

    `logits` float32 [N, K] are the model's, at temperature 1. Returns None and changes nothing if there are too few
    images or errors to fit a meaningful temperature.
    """
    if not len(labels):
        return None
    temperature = task.fit_temperature(logits, labels)
    return None if temperature is None else set_temperature(model, temperature)


def set_temperature(model: Any, temperature: float) -> float:
    """Set the temperature of the Keras model's graph, and return it."""
    model.get_layer(TEMPERATURE_LAYER).scale = 1 / temperature
    return temperature


def _sample_pixel_logits(task: Task, model: Any, data: DecodedDataset) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Return the logits float32 [M, K] and the classes int32 [M] of pixels of the validation split."""
    samples = data.subset("validation")
    if not len(samples):
        return np.zeros((0, len(data.classes)), np.float32), np.zeros(0, np.int32)
    return task.collect_outputs(KerasPredictor(model, data.classes, PreprocessingSpec()), samples).calibration


def _collect_validation_logits(
    task: Task, model: Any, data: DecodedDataset, training_logits: NDArray[np.float32] | None, precision: str
) -> NDArray[np.float32]:
    """Return the logits float32 [N, K] of the validation split in full float32, at temperature 1.

    The logits from training (`training_logits`) are used if it ran in float32 on a CPU; otherwise they are recomputed.
    """
    samples = data.subset("validation")
    is_usable = (
        training_logits is not None
        and training_logits.dtype == np.float32
        and len(training_logits) == len(samples)
        and training_logits.shape[-1] == len(data.classes)
    )
    if training_logits is not None and is_usable and precision == "float32" and not backend.has_accelerator():
        return training_logits
    if not len(samples):
        return np.zeros((0, len(data.classes)), np.float32)
    keras_predictor = KerasPredictor(model, data.classes, PreprocessingSpec())  # the pixels are already decoded
    return task.collect_outputs(keras_predictor, samples).outputs.logits
