"""Training objectives: what a training step minimizes. The loop is the same for all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sightline.config import AugmentConfig, RunConfig
from sightline.data.types import Subset
from sightline.distributed import devices
from sightline.training.augment import pipeline
from sightline.training.optimizers import build_loss, compute_class_weights, smooth_labels


class Objective(Protocol):
    """What a training step minimizes for the images of a subset.

    A step passes the images, augmented, to the network, and its logits float32 [n, K] with the targets float32 [n, T]
    and the sample weights float32 [n] to the loss.
    """

    @property
    def augmentation(self) -> AugmentConfig | None:
        """The augmentation of the images; None for none."""

    def sample_params(self, epoch: int) -> NDArray[np.float32]:
        """Return the augmentation parameters of each image in an epoch (1-based): float32 [N, D].

        It is called only with an `augmentation`.
        """

    def compute_targets(
        self, rows: NDArray[np.int64], epoch: int, params: NDArray[np.float32] | None
    ) -> NDArray[np.float32]:
        """Return the targets of a batch, float32 [n, T]: the images at `rows` int64 [n], augmented with `params`."""

    def build_loss(self) -> Any:
        """Return the Keras loss of logits against targets."""

    def build_accuracy(self) -> Any:
        """Return the Keras metric of logits against targets that is called ``categorical_accuracy``."""


@dataclass(frozen=True, slots=True)
class Classification:
    """The loss of ``train.loss`` against the labels of `train`, with smoothing, class weights and mixing of images."""

    config: RunConfig
    train: Subset
    num_classes: int
    augmentation: AugmentConfig | None
    class_weights: NDArray[np.float32] | None

    @classmethod
    def from_config(
        cls, config: RunConfig, train: Subset, num_classes: int, augmentation: AugmentConfig | None
    ) -> Classification:
        """Return the objective for the labels of `train`, the class weights computed as ``train.class_weights`` says.

        An `augmentation` that changes nothing is left out.
        """
        if augmentation is not None and not pipeline.is_enabled(augmentation):
            augmentation = None
        weights = compute_class_weights(train.labels, num_classes, config.train.class_weights)
        return cls(config, train, num_classes, augmentation, weights)

    def sample_params(self, epoch: int) -> NDArray[np.float32]:
        """Sample the parameters of an epoch from the run's seed."""
        assert self.augmentation is not None
        size = self.train.pixels.shape[1:3]
        return pipeline.sample_params(self.augmentation, len(self.train), size, self.config.seed, epoch)

    def compute_targets(
        self,
        rows: NDArray[np.int64],
        epoch: int,  # noqa: ARG002  # labels are the same in each
        params: NDArray[np.float32] | None,
    ) -> NDArray[np.float32]:
        """Return soft labels, float32 [n, K]."""
        labels = self.train.labels[rows]
        soft_labels = smooth_labels(labels, self.num_classes, self.config.train.label_smoothing)
        if self.class_weights is not None:
            soft_labels *= self.class_weights[labels, None]  # the loss is linear in them; the accuracy is not weighted
        if self.augmentation is None or params is None:
            return soft_labels
        slice_pairs = (np.split(values, devices.count_slices()) for values in (soft_labels, params))
        return np.concatenate(
            [pipeline.mix_labels(self.augmentation, *slices) for slices in zip(*slice_pairs, strict=True)]
        )

    def build_loss(self) -> Any:
        """Return the loss of ``train.loss``."""
        return build_loss(self.config.train)

    def build_accuracy(self) -> Any:
        """Return Keras' own metric."""
        return "categorical_accuracy"
