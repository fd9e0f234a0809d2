"""From a complete configuration and indexed images to decoded images and a trainable network."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sightline import backend
from sightline.callbacks import Callback, Progress, no_progress
from sightline.config import RunConfig
from sightline.data.batches import iterate_slices
from sightline.data.dataset import DecodedDataset, build_dataset
from sightline.data.types import Index
from sightline.distributed import devices
from sightline.distributed.devices import Distribution
from sightline.models import build, initializers, registry
from sightline.models.build import ModelSpec, Network
from sightline.preprocessing import PreprocessingSpec
from sightline.runs.facts import THIS_MACHINE
from sightline.runs.resolve import RunInputs, build_preprocess
from sightline.tasks.protocol import find_task
from sightline.training import early_features, loop
from sightline.training.checkpoints import Checkpoint
from sightline.training.early_features import EarlyFeatures
from sightline.training.loop import FitResult
from sightline.training.time_budget import TimeBudget


@dataclass(frozen=True, slots=True)
class PreparedRun:
    """The input of training: the settings, the indexed and decoded images, the network's specification.

    `spec.weights` is the file with the initial weights, None for random ones.
    """

    config: RunConfig
    index: Index
    data: DecodedDataset
    spec: ModelSpec
    preprocess: PreprocessingSpec


@dataclass(frozen=True, slots=True)
class DistributedNetwork:
    """A network on the devices that train it."""

    network: Network
    spec: ModelSpec
    distribution: Distribution

    def to_single_device_model(self) -> Any:
        """Return a float32 Keras model on one device: the network itself, or a copy if it trained differently."""
        if self.spec.precision == "float32" and self.distribution.keras_distribution is None:
            return self.network.model
        copy = build.build_model(replace(self.spec, precision="float32", l2=0.0)).model
        backend.assign_all(copy.weights, self.network.model.get_weights())
        return copy


def prepare_inputs(inputs: RunInputs, progress: Progress = no_progress) -> PreparedRun:
    """Decode the images of `inputs`, whose settings are complete, and specify the network."""
    config = inputs.config
    initial_weights, preprocess = THIS_MACHINE.find_initial_weights(config), build_preprocess(config)
    data = build_dataset(
        inputs.index, preprocess, config.split, config.seed, targets=find_task(config.model.task).targets,
        keep=config.data.cache, progress=progress, threads=config.device.threads or None,
    )  # fmt: skip
    return PreparedRun(config, inputs.index, data, build_model_spec(config, data, initial_weights), preprocess)


def build_distributed_network(prepared: PreparedRun) -> DistributedNetwork:
    """Build the network on the devices of the settings."""
    distribution = devices.create_distribution(prepared.config.device)
    with distribution.scope():
        return DistributedNetwork(build_network(prepared.spec, prepared.data), prepared.spec, distribution)


def computing_early(
    prepared: PreparedRun, meanwhile: Callable[[], None]
) -> AbstractContextManager[EarlyFeatures | None]:
    """Return a context in which features of all images are computed, if training starts with those of frozen layers."""
    config, data = prepared.config, prepared.data
    entry = registry.get_entry(config.model.name)
    subsets = data.training_subset(), data.subset("validation"), data.subset("test")
    return early_features.computing_early(config, entry, prepared.spec.weights, *subsets, meanwhile=meanwhile)


def fit_network(
    network: DistributedNetwork,
    prepared: PreparedRun,
    callback: Callback,
    checkpoint: Checkpoint | None,
    checkpoint_dir: Path | None = None,
    budget: TimeBudget | None = None,
    early: EarlyFeatures | None = None,
) -> FitResult:
    """Train `network` in place, from `checkpoint` if there is one; see `training.loop.fit`."""
    data = prepared.data
    with network.distribution.scope():
        return loop.fit(
            network.network, data.training_subset(), data.subset("validation"), prepared.config, callback,
            checkpoint_dir=checkpoint_dir, resume_from=checkpoint, budget=budget, early=early,
        )  # fmt: skip


def build_model_spec(config: RunConfig, data: DecodedDataset, start: Path | None) -> ModelSpec:
    """Return the specification of the network; `start` is the file with its initial weights, None for random ones."""
    height, width, channels = data.pixels.shape[1:]
    entry, task = registry.get_entry(config.model.name), find_task(config.model.task)
    mean_and_std = None
    if "standardize" in (config.model.normalize, entry.normalize):
        mean_and_std = _mean_and_deviation(data)
    return ModelSpec(
        config.model, height, width, channels, len(data.classes), config.seed,
        config.train.precision, config.train.l2, mean_and_std, start, task.activation,
        build.choose_decoder(config.model, is_for_masks=task.targets.are_masks),
    )  # fmt: skip


def _mean_and_deviation(data: DecodedDataset) -> tuple[float, float]:
    """Return the mean and standard deviation over all training pixels (0 to 255), without copying them."""
    samples = data.subset("train")
    pixel_sum = squares = count = 0
    for rows in iterate_slices(len(samples), 256):
        histogram = np.bincount(samples.take(rows).ravel(), minlength=256)
        values = np.arange(256)
        pixel_sum += int((histogram * values).sum())
        squares += int((histogram * values**2).sum())
        count += int(histogram.sum())
    mean = pixel_sum / count
    return mean, float(np.sqrt(squares / count - mean**2))


def build_network(spec: ModelSpec, data: DecodedDataset) -> Network:
    """Build the network; initialize a whitening first layer, if it has one, from the training images."""
    network = build.build_model(spec)
    if spec.weights is None:
        layer, train = registry.get_entry(spec.config.name).whitening_layer, data.subset("train")
        initializers.init_whitening(network.model, layer, len(train), train.take)
    return network
