"""Drawn scenes of disks and bars with masks, 32 pixels wide."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 32
DISK, BAR = "<b id='i'>disk & \"</b>", "__proto__"  # class names that an attacker might choose


def draw_scene(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an image uint8 [H, W, 3] of a red disk and a blue bar on gray, and its mask: 1, 2, 0, and 9 at an edge."""
    rng = np.random.default_rng(number)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    y, x = np.mgrid[:SIDE, :SIDE]
    top = rng.integers(2, 24)
    mask[top : top + 5] = 2
    (cy, cx), radius = rng.integers(8, 24, 2), rng.integers(5, 8)
    mask[(y - cy) ** 2 + (x - cx) ** 2 < radius**2] = 1
    colors = np.array([[120, 120, 120], [200, 60, 50], [50, 80, 190]], float)
    image = colors[mask] + rng.normal(0, 12, (SIDE, SIDE, 3))
    mask[:, -1] = 9
    return image.clip(0, 255).astype(np.uint8), mask


def encode(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def draw_scenes(folder: Path, train: int, validation: int) -> Path:
    for split, numbers in (("train", range(train)), ("val", range(1000, 1000 + validation))):
        for number in numbers:
            image, mask = draw_scene(number)
            for kind, pixels in (("images", image), ("masks", mask)):
                path = folder / split / kind / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encode(pixels))
    (folder / "classes.csv").write_text("value,name\n0,ground\n1,disk\n2,bar\n9,void\n")
    return folder


def name_classes(folder: Path, disk: str, bar: str) -> None:
    """Rename the classes of drawn scenes."""
    with (folder / "classes.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("value", "name"), (0, "ground"), (1, disk), (2, bar), (9, "void")])
