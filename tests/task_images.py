"""A small data set for each task, with images of 32 pixels, and settings that train on it in seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from drawn_scenes import draw_scenes
from graded_images import SIZES, write_sizes
from synthetic_images import draw_image, encode

LABEL_COLORS = ("blue", "green", "red")
TREE_COLORS = {"warm/red": 0, "cool/blue": 1, "cool/green": 2, "warm/bright/yellow": 3, "gray": 4}
TASKS = ("ordinal", "hierarchical", "multi_label", "segmentation")
NETWORK = ("model.name=cifar10-simple", "model.pooling=average")
TRAINING = ("train.batch_size=16", "train.track=[]", "device.threads=1")


def draw_colors(seed: int, colors: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return noise with a bright square for each color that is present."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 60, (32, 32, 3)).astype(np.uint8)
    for channel, has in zip((2, 1, 0), colors, strict=True):
        if has:
            y, x = rng.integers(0, 20, 2)
            pixels[y : y + 12, x : x + 12, channel] += 180
    return pixels


def write_label_sets(folder: Path, count: int, seed: int = 0) -> Path:
    """Write images and their manifest; about an eighth of the images have no labels."""
    folder.mkdir(exist_ok=True)
    colors = np.random.default_rng(seed).random((count, 3)) < 0.5
    lines = ["path,labels,scene"]
    for i, row in enumerate(colors):
        (folder / f"{i}.png").write_bytes(encode(Image.fromarray(draw_colors(1000 * seed + i, row))))
        lines.append(f"{i}.png,{';'.join(c for c, has in zip(LABEL_COLORS, row, strict=True) if has)},{i // 4}")
    (folder / "labels.csv").write_text("\n".join(lines), encoding="utf-8")
    return folder / "labels.csv"


def draw_tree(root: Path, count: int = 24) -> Path:
    """Write `count` images for each class of a tree into nested folders."""
    for name, color in TREE_COLORS.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            draw_image(number, color, 32).save(root / name / f"{number}.png")
    return root


def write_task(task: str, folder: Path, count: int) -> tuple[Path, list[str]]:
    """Write about `count` images for a task; return their path and the settings for a run."""
    settings = [
        f"model.task={task}",
        *(("model.name=fcn", "model.weights=none") if task == "segmentation" else NETWORK),
        *TRAINING,
    ]
    if task == "multi_label":
        return write_label_sets(folder, count), settings
    if task == "hierarchical":
        return draw_tree(folder, count // len(TREE_COLORS)), [*settings, "data.class_tree=folders"]
    if task == "ordinal":
        return write_sizes(folder, count), [*settings, f"data.class_order={json.dumps(SIZES)}"]
    assert task == "segmentation"
    return draw_scenes(folder, count - count // 4, count // 4), settings


def assert_alike(first: Any, second: Any) -> None:
    """Compare two predictions; probabilities may differ as much as between two backends."""
    if isinstance(first, float):
        assert first == pytest.approx(second, abs=1e-3)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for name in first:
            assert_alike(first[name], second[name])
    elif isinstance(first, list | tuple):
        assert len(first) == len(second)
        for a, b in zip(first, second, strict=True):
            assert_alike(a, b)
    else:
        assert first == second
