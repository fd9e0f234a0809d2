"""Run the command line in this process, and draw images for it."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from PIL import Image

from sightline import _io


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


Command = Callable[..., Outcome]


def draw_classes(folder: Path, classes: dict[str, tuple[int, int, int]], count: int, size: int = 32) -> Path:
    """Draw `count` images of each class: its color plus noise."""
    for number, (label, color) in enumerate(classes.items()):
        (folder / label).mkdir(parents=True)
        for i in range(count):
            noise = np.random.default_rng(1000 * number + i).normal(0, 40, (size, size, 3))
            pixels = np.clip(np.array(color) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{label}-{i:03}.png")
    return folder


COLORS = {"blue": (60, 60, 200), "green": (60, 200, 60), "red": (200, 60, 60)}


# With 64 instead of 512 units, the head has an eighth of the weights to write, hash and export: half the run time.
SMALL = ("--recipe", "quick", "--model", "cifar10-simple", "--set", "model.hidden_units=[64]", "--epochs", "2")

# A sweep with two trials of one epoch.
SPACE = """
recipe = "quick"
[settings]
model.name = "cifar10-simple"
model.hidden_units = [4]
train.epochs = 1
train.track = []
[space]
train.optimizer.learning_rate = [1e-3, 1e-4]
"""
TINY_SWEEP = """
recipe = "quick"
[settings]
model.name = "cifar10-simple"
model.hidden_units = [16]
train.epochs = 3
train.batch_size = 16
train.track = []
"""
"""The beginning of a search space: a small network and settings, without parameters."""


def skip_without(package: str) -> None:
    """Skip the test if a package is not installed, without importing it: OpenVINO's telemetry would fork."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"the package {package} is not installed")


def open_and_replace(path: Path, other: Path) -> Callable[[str | Path], IO[bytes]]:
    """Return an `_io.open_regular` that replaces the file at `path` after opening it, as only that may be read."""
    open_regular = _io.open_regular

    def open_then_replace(name: str | Path) -> IO[bytes]:
        file = open_regular(name)
        if Path(name) == path:
            other.write_bytes(b"another file")
            other.replace(path)
        return file

    return open_then_replace
