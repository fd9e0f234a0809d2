"""The demo: generated images of coffee beans, a short training, a few new images."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from sightline.data import beans
from sightline.records import TrainResult
from sightline.run import next_path
from sightline.watch import Watcher
from sightline.workflow.training import train

NEW_SEED = 1  # training images are generated with seed 0


def demo_train(pictures: str, *, out: Path | None, epochs: int | None, watcher: Watcher) -> TrainResult:
    """Train the ``quick`` recipe on generated coffee beans."""
    path = out or next_path(Path("runs"), "demo")
    assignments = ["train.epochs=10"] if epochs is None else [f"train.epochs={epochs}"]
    return train(pictures, recipe="quick", set=assignments, out=path, watcher=watcher)


def draw_new(folder: Path, count: int, size: int = 224) -> list[Path]:
    """Generate images that are not in the training data and save them as ``<true roast>-<n>.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i in range(count):
        path = folder / f"{beans.CLASSES[i % len(beans.CLASSES)].lower()}-{i + 1}.png"
        Image.fromarray(beans.draw(i, size, NEW_SEED)).save(path)
        paths.append(path)
    return paths
