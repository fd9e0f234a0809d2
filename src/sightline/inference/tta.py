"""Test-time augmentation: predict several views of each image, and average them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sightline import metrics
from sightline.errors import UsageError
from sightline.inference.predictor import Outputs, OutputsPredictor, Predictor

TTA = Literal["flip", "flip-shift"]
VIEWS: dict[TTA, int] = {"flip": 2, "flip-shift": 6}
"""The number of views of each image."""


class TTAPredictor(OutputsPredictor):
    """Averages the logits and features of several views of each image; `activate` turns logits into probabilities.

    ``flip`` averages an image and its mirror image. ``flip-shift`` averages these two, with weight 1/4 each, and both
    of them shifted up and to the left and down and to the right by 1/32 of the height and width, at least one pixel,
    with weight 1/8 each; pixels outside are reflected (Jordan, 2024, arXiv:2404.00498, section 3.6).

    Raises `UsageError` for shifted views of masks.
    """

    def __init__(
        self,
        predictor: Predictor,
        activate: Callable[[NDArray[np.float32]], NDArray[np.float32]] = metrics.softmax,
        kind: TTA = "flip",
    ) -> None:
        self.predictor, self._activate, self._kind = predictor, activate, kind
        self.classes, self.preprocess = predictor.classes, predictor.preprocess

    def outputs(self, pixels: NDArray[np.uint8]) -> Outputs:
        """Return probabilities, mean logits and mean features for uint8 pixels [N, H, W, C]."""
        weighted = [self._average_mirrored(view, weight) for view, weight in self._iterate_views(pixels)]
        logits: NDArray[np.float32] = sum((row[0] for row in weighted[1:]), weighted[0][0])
        features: NDArray[np.float32] = sum((row[1] for row in weighted[1:]), weighted[0][1])
        return Outputs(self._activate(logits).astype(np.float32), logits, features)

    def _iterate_views(self, pixels: NDArray[np.uint8]) -> Iterator[tuple[NDArray[np.uint8], float]]:
        """Yield the views to average with their mirror images, and the weight of each."""
        if self._kind == "flip":
            yield pixels, 1.0
            return
        yield pixels, 0.5
        height, width = pixels.shape[1:3]
        down, right = (max(round(size / 32), 1) for size in (height, width))
        padded = np.pad(pixels, ((0, 0), (down, down), (right, right), (0, 0)), "reflect")
        for top, left in ((0, 0), (2 * down, 2 * right)):
            yield np.ascontiguousarray(padded[:, top : top + height, left : left + width]), 0.25

    def _average_mirrored(
        self, pixels: NDArray[np.uint8], weight: float
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the mean logits and features of images and their mirror images, multiplied by `weight`."""
        original = self.predictor.outputs(pixels)
        mirrored = self.predictor.outputs(np.ascontiguousarray(pixels[:, :, ::-1]))
        other = mirrored.logits
        if other.ndim > 2:  # per pixel, so they must be mirrored back
            if self._kind != "flip":
                raise UsageError("Masks cannot be averaged over shifted views: use --tta flip.")
            other = other[:, :, ::-1]
        half = np.float32(weight / 2)
        return half * (original.logits + other), half * (original.features + mirrored.features)
