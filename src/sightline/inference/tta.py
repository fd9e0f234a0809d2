"""Flip test-time augmentation: predict each image and its mirror image, at twice the cost."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sightline import metrics
from sightline.inference.predictor import Outputs, Predictor
from sightline.preprocessing import PreprocessingSpec


class FlipTTA:
    """Averages the logits of an image and its horizontal mirror image; `activate` turns them into probabilities."""

    def __init__(
        self, predictor: Predictor, activate: Callable[[NDArray[np.float32]], NDArray[np.float32]] = metrics.softmax
    ) -> None:
        self.predictor, self._activate = predictor, activate

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in the order of the probabilities."""
        return self.predictor.classes

    @property
    def preprocess(self) -> PreprocessingSpec:
        """How an image becomes pixels."""
        return self.predictor.preprocess

    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return float32 [N, K] for uint8 pixels [N, H, W, C]."""
        return self.outputs(pixels).probabilities

    def outputs(self, pixels: NDArray[np.uint8]) -> Outputs:
        """Return probabilities, mean logits and mean features for uint8 pixels [N, H, W, C]."""
        original = self.predictor.outputs(pixels)
        mirrored = self.predictor.outputs(np.ascontiguousarray(pixels[:, :, ::-1]))
        half = np.float32(0.5)
        other = (
            mirrored.logits if mirrored.logits.ndim == 2 else mirrored.logits[:, :, ::-1]
        )  # of pixels: mirrored back
        logits: NDArray[np.float32] = half * (original.logits + other)
        features: NDArray[np.float32] = half * (original.features + mirrored.features)
        return Outputs(self._activate(logits).astype(np.float32), logits, features)
