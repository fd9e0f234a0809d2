"""The common part of all tasks' objectives: augmentation of images, and of targets if images are mixed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from sightline.config import AugmentConfig, RunConfig
from sightline.data.types import Subset
from sightline.distributed import devices
from sightline.training.augment import pipeline

T = TypeVar("T", np.float32, np.uint8)


@dataclass(frozen=True, slots=True)
class AugmentedObjective:
    """The part of an objective that is the same for any kind of label; `augmentation` is None if it changes nothing."""

    config: RunConfig
    train: Subset
    augmentation: AugmentConfig | None

    def sample_params(self, epoch: int) -> NDArray[np.float32]:
        """Sample the parameters of an epoch from the run's seed."""
        assert self.augmentation is not None
        size = self.train.pixels.shape[1:3]
        return pipeline.sample_params(self.augmentation, len(self.train), size, self.config.seed, epoch)

    def mix_targets(self, targets: NDArray[np.float32], params: NDArray[np.float32] | None) -> NDArray[np.float32]:
        """Return the targets float32 [n, K] of a batch that is augmented with `params`, on each device by itself."""
        return self.augment_targets(pipeline.mix_labels, targets, params)

    def augment_targets(
        self,
        augment: Callable[[AugmentConfig, NDArray[T], NDArray[np.float32]], NDArray[T]],
        targets: NDArray[T],
        params: NDArray[np.float32] | None,
    ) -> NDArray[T]:
        """Return the targets [n, ...] of a batch as `augment` changes them for the images of each device."""
        config = self.augmentation
        if config is None or params is None:
            return targets
        slice_pairs = zip(*(np.split(values, devices.count_slices()) for values in (targets, params)), strict=True)
        return np.concatenate([augment(config, values, rows) for values, rows in slice_pairs])


def drop_disabled(augmentation: AugmentConfig | None) -> AugmentConfig | None:
    """Return the augmentation, or None if it changes nothing."""
    return augmentation if augmentation is not None and pipeline.is_enabled(augmentation) else None
