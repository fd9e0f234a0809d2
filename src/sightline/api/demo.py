"""The demo: generated images of coffee beans, a short training, a few new images."""

from __future__ import annotations

from pathlib import Path

from sightline import _io
from sightline.api.training import train
from sightline.callbacks import Callback
from sightline.datasets import coffee_beans
from sightline.preprocessing import encode_png
from sightline.runs.directory import next_path
from sightline.training.result import TrainResult

NEW_SEED = 1  # training images are generated with seed 0


def demo_train(images: str, *, out: Path | None, epochs: int | None, callback: Callback) -> TrainResult:
    """Train on generated coffee beans as `train` does by default: from ImageNet weights, where they are installed."""
    return train(images, epochs=epochs, out=out or next_path(Path("runs"), "demo"), callback=callback)


def draw_demo_images(folder: Path, count: int, size: int = 224) -> list[Path]:
    """Generate images that are not in the training data and save them as ``<true roast>-<n>.png``."""
    paths = []
    for i in range(count):
        path = folder / f"{coffee_beans.CLASSES[i % len(coffee_beans.CLASSES)].lower()}-{i + 1}.png"
        _io.write_atomic(path, encode_png(coffee_beans.draw(i, size, NEW_SEED)))
        paths.append(path)
    return paths
