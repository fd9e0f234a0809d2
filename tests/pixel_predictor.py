"""A segmentation model without training: fully convolutional, with a small receptive field."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sightline.api.classifier import Classifier
from sightline.inference.predictor import Outputs
from sightline.preprocessing import PreprocessingSpec

CLASSES = ("dark", "gray", "light")
REACH = 2  # pixels on each side that determine the class of a pixel


class PixelPredictor:
    """Classifies by the mean brightness of the (2 `REACH` + 1)^2 pixels around each, zero beyond the image."""

    classes = CLASSES

    def __init__(self, preprocess: PreprocessingSpec) -> None:
        self.preprocess = preprocess
        self.calls: list[int] = []  # number of images in each call

    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.calls.append(len(pixels))
        gray = np.pad(pixels.mean(-1, dtype=np.float32) / 255, ((0, 0), (REACH, REACH), (REACH, REACH)))
        side = 2 * REACH + 1
        mean = np.lib.stride_tricks.sliding_window_view(gray, (side, side), (1, 2)).mean((-1, -2), dtype=np.float64)
        scores = -12 * np.abs(mean[..., None] - np.array([0.1, 0.5, 0.9]))
        odds = np.exp(scores)
        probabilities: NDArray[np.float32] = (odds / odds.sum(-1, keepdims=True)).astype(np.float32)
        return probabilities

    def outputs(self, pixels: NDArray[np.uint8]) -> Outputs:
        probabilities = self.probabilities(pixels)
        return Outputs(probabilities, np.log(probabilities), pixels.mean((1, 2), dtype=np.float32) / 255)


def make_mask_model(height: int = 16, width: int = 24, **spec: str) -> Classifier:
    """Return a loaded segmentation model for images of this size."""
    classifier = Classifier(PixelPredictor(PreprocessingSpec(height, width, **spec)))  # type: ignore[arg-type]
    classifier.task_name = "segmentation"
    return classifier


def draw_blobs(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Return a smooth random image, uint8 [H, W, 3], with pixels of all classes."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 7), np.uint8)
    gray = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    return np.repeat(gray[..., None], 3, -1)


def encode_blobs(height: int, width: int, seed: int = 0) -> bytes:
    file = io.BytesIO()
    Image.fromarray(draw_blobs(height, width, seed)).save(file, "PNG")
    return file.getvalue()
