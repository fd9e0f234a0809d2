"""Synthetic chest X-rays: the same anatomy with small individual differences, like aligned medical images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def torso(number: int, side: int = 192) -> Image.Image:
    """Return the X-ray of person `number`: lungs, ribs, spine, heart, clavicles and diaphragm, varied, with grain.

    They all differ everywhere, but at 16x16 pixels most look the same.
    """
    rng = np.random.default_rng([20, number])
    grow, turn = 1 + rng.normal(0, 0.02, 2), rng.normal(0, 0.01)
    y, x = np.mgrid[0:side, 0:side] / (side - 1) * 2 - 1
    x, y = (x + turn * y - rng.normal(0, 0.015)) * grow[0], (y - turn * x - rng.normal(0, 0.02)) * grow[1]
    body = _inside(x / 0.95, (y - 0.25) / 1.25, 0.08)
    image = 0.12 + 0.55 * body
    lungs = np.zeros_like(x)
    for sign in (-1, 1):
        wide, tall = 0.33 + rng.normal(0, 0.015), 0.62 + rng.normal(0, 0.025)
        lung = _inside((x - sign * (0.42 + rng.normal(0, 0.01))) / wide, (y + 0.05) / tall, 0.12)
        lungs = np.maximum(lungs, lung * _step(0.5 + rng.normal(0, 0.02) - 0.15 * (x * sign - 0.4) ** 2 - y, 0.03))
    image -= 0.38 * lungs
    image += 0.13 * np.exp(-((x / (0.09 + rng.normal(0, 0.005))) ** 2)) * body  # the spine
    image += (
        0.25 * _inside((x - 0.12 - rng.normal(0, 0.015)) / (0.3 + rng.normal(0, 0.02)), (y - 0.25) / 0.3, 0.1) * lungs
    )
    first, gap, bow = -0.62 + rng.normal(0, 0.02), 0.155 + rng.normal(0, 0.004), 0.35 + rng.normal(0, 0.03)
    for rib in range(8):
        at = first + rib * gap + rng.normal(0, 0.012) + bow * (np.abs(x) - 0.35) ** 2 - 0.1 * np.abs(x)
        image += (0.07 + rng.normal(0, 0.01)) * np.exp(-(((y - at) / 0.025) ** 2)) * body
    for sign in (-1, 1):
        at = -0.72 + rng.normal(0, 0.015) - (0.12 + rng.normal(0, 0.02)) * (sign * x - 0.2)
        image += 0.1 * np.exp(-(((y - at) / 0.03) ** 2)) * _step(sign * x - 0.08, 0.02) * body
    vessels = np.asarray(Image.fromarray(rng.normal(0, 1, (24, 24)).astype(np.float32)).resize((side, side), 3))
    image += 0.025 * vessels * body + rng.normal(0, 0.012, x.shape)
    image = np.clip((image - 0.05) * (1 + rng.normal(0, 0.06)) + rng.normal(0, 0.02), 0, 1)
    pixels: NDArray[np.uint8] = np.round(255 * image ** (1 + rng.normal(0, 0.05))).astype(np.uint8)
    return Image.fromarray(pixels)


def _step(value: NDArray[np.float64], width: float) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-np.clip(value / width, -30, 30)))


def _inside(x: NDArray[np.float64], y: NDArray[np.float64], width: float) -> NDArray[np.float64]:
    return _step(1 - np.hypot(x, y), width)
