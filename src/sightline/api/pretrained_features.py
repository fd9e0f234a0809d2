"""Features of a pretrained network for the images of an index, whether or not they have labels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sightline.api.learning_curve import CHOICES, compute_features
from sightline.callbacks import Callback
from sightline.data.types import Index
from sightline.evaluation.active_learning import project_features
from sightline.runs import environment, network_setup
from sightline.runs.facts import THIS_MACHINE, DataFacts
from sightline.runs.resolve import RunInputs, apply_steps, merge_recipe
from sightline.runs.steps import IMMEDIATE_STEPS
from sightline.runs.train_request import TrainRequest
from sightline.tasks.protocol import find_task


def compute_projected_features(
    index: Index, settings: tuple[str, ...] = (), callback: Callback | None = None
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return the projected features of all images of an index, float32 [N, D], and which could be decoded, bool [N].

    Images that cannot be decoded have a row of NaN. Pixels and features come from the cache if it has them; the
    features before `active_learning.project_features`, which may be larger, are never in memory twice. `settings` are
    assignments such as ``device.threads=2``.

    Raises:
        DataError: If no image can be decoded.
        MissingExtraError: If the packages of the backend are not installed.
    """
    callback = callback or Callback()
    computed, positions = _compute(index, settings, callback)
    callback.on_progress("projecting", 0, 0)
    projected = project_features(computed)
    decoded = np.zeros(len(index.images), bool)
    decoded[positions] = True
    if decoded.all() and positions == sorted(positions):
        return projected, decoded
    features = np.full((len(decoded), projected.shape[1]), np.nan, np.float32)
    features[positions] = projected
    return features, decoded


def _compute(index: Index, settings: tuple[str, ...], callback: Callback) -> tuple[NDArray[np.float32], list[int]]:
    """Return the features float32 [n, F] of the decoded images, memory-mapped if cached, and their positions."""
    of_task = [setting for setting in settings if setting.startswith("model.task=")]
    task = "multi_label" if of_task and of_task[-1] == "model.task=multi_label" else "single_label"
    others = [setting for setting in settings if setting not in of_task]  # the task affects resizing, not heads
    request = TrainRequest.create((), "transfer", None, [*others, f"model.task={task}"])
    environment.check_packages(request.merge_layers())
    placeholders = tuple(  # features do not depend on labels, but decoding for training requires some
        replace(image, label=str(i % 2), split=None) for i, image in enumerate(index.images)
    )
    inputs = replace(index, images=placeholders, unreadable=(), several_labels="")
    facts = DataFacts.from_index(inputs, find_task(task), callback.on_progress)
    config, _ = merge_recipe(request, facts, THIS_MACHINE)
    THIS_MACHINE.start_backend(config.device)
    config = apply_steps(config, (*IMMEDIATE_STEPS, *CHOICES), facts, THIS_MACHINE, callback)
    prepared = network_setup.prepare_inputs(RunInputs(config, inputs), callback.on_progress)
    callback.on_progress("loading the network", 0, 0)
    subset = compute_features(prepared, callback)
    in_order = np.array_equal(subset.rows, np.arange(len(subset.pixels)))
    position_of = {(image.path, image.sha256): i for i, image in enumerate(index.images)}
    positions = [position_of[image.path, image.sha256] for image in prepared.data.images]
    return (subset.pixels if in_order else subset.take(slice(None))), positions
