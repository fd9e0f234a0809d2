"""Drawn images with grades: squares that grow with the grade, with sizes that overlap those of neighboring grades."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from synthetic_images import encode

SIZES = ("tiny", "small", "medium", "large", "huge")  # sorted by name: huge, large, medium, small, tiny


def write_sizes(folder: Path, count: int, *, seed: int = 0, spread: float = 1.2) -> Path:
    """Write `count` images of 32 x 32 pixels into a folder for each size; sides of squares vary by `spread` pixels."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        grade = i % len(SIZES)
        pixels = rng.integers(0, 60, (32, 32, 3)).astype(np.uint8)
        side = int(np.clip(round(6 + 5 * grade + rng.normal(0, spread)), 3, 30))
        y, x = rng.integers(0, 33 - side, 2)
        pixels[y : y + side, x : x + side] += rng.integers(120, 150, 3).astype(np.uint8)
        path = folder / SIZES[grade] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(Image.fromarray(pixels)))
    return folder
