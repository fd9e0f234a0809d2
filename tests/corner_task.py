"""Images whose class is determined by one corner, and small networks trained on them."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from networks import make_plan
from sightline.inference.runtimes.keras import KerasPredictor
from sightline.models.build import build_model
from sightline.preprocessing import PreprocessingSpec

SIDE = 32
CLASSES = ("blue", "red", "neither")  # three classes, so that blue is not merely the absence of red
COLORS = ((40, 60, 220), (220, 40, 50))
DISTRACTORS = ((40, 180, 60), (225, 205, 40), (150, 150, 150), (40, 190, 190))
CORNERS = {"top left": (0, 0), "top right": (0, 1), "bottom left": (1, 0), "bottom right": (1, 1)}


def draw_images(count: int, corner: str = "top right", seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return noisy images uint8 [N, 32, 32, 3] and classes [N].

    A blue or red disk in `corner` determines the class; the other quarters, and the corner itself for the third class,
    contain disks of other colors.
    """
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    pixels = rng.normal(90, 25, (count, SIDE, SIDE, 3))
    y, x = np.mgrid[:SIDE, :SIDE]
    for i in range(count):
        for place, (down, across) in CORNERS.items():
            center = np.array([down, across]) * SIDE // 2 + rng.integers(6, 11, 2)
            disc = (y - center[0]) ** 2 + (x - center[1]) ** 2 <= rng.integers(3, 6) ** 2
            colors = [COLORS[labels[i]]] if place == corner and labels[i] < 2 else DISTRACTORS
            pixels[i][disc] = colors[rng.integers(len(colors))] + rng.normal(0, 15, 3)
    return np.clip(pixels, 0, 255).astype(np.uint8), labels.astype(np.int64)


@cache
def train_predictor(name: str = "cifar10-deep", corner: str = "top right", **settings: Any) -> KerasPredictor:
    """Return a network of the registry trained on `corner`; read-only."""
    network = build_model(make_plan(name, side=SIDE, classes=3, **({"dropout": 0.0} | settings)))
    pixels, labels = draw_images(288, corner)
    model = network.model
    import keras

    logits = keras.Model(model.input, network.logits)
    logits.compile(keras.optimizers.Adam(3e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    for epoch in range(6):
        order = np.random.default_rng(epoch).permutation(len(pixels))
        for start in range(0, len(pixels), 32):
            logits.train_on_batch(pixels[order[start : start + 32]], labels[order[start : start + 32]])
    return KerasPredictor(model, CLASSES, PreprocessingSpec(SIDE, SIDE))


def heat_fraction(heat: NDArray[np.float32], corner: str = "top right") -> NDArray[np.float64]:
    """Return the fraction of each heatmap's heat [N, H, W] that is in the quarter `corner`."""
    down, across = CORNERS[corner]
    half_h, half_w = heat.shape[1] // 2, heat.shape[2] // 2
    quarter = heat[:, down * half_h : (down + 1) * half_h, across * half_w : (across + 1) * half_w]
    return np.asarray(quarter.sum((1, 2), dtype=np.float64) / np.maximum(heat.sum((1, 2), dtype=np.float64), 1e-9))
