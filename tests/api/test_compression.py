"""A search for a smaller model goes on with the images that it began with, and no others."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drawn_scenes import draw_scenes
from sightline.api.compression_result import CompressionResult
from sightline.cli.compress import print_compression
from sightline.compress.search_dir import CompressionCandidate
from sightline.config import SplitConfig
from sightline.data.dataset import build_dataset
from sightline.data.indexing import build_index
from sightline.data.recorded_images import hash_images
from sightline.preprocessing import PreprocessingSpec
from sightline.tasks.protocol import find_task
from synthetic_images import encode_png, write_files
from task_images import write_label_sets


def test_another_image_of_the_same_number_is_another_search(tmp_path: Path) -> None:
    def content(seed: int = 0) -> str:
        dataset = build_dataset(build_index(tmp_path), PreprocessingSpec(8, 8), SplitConfig(), seed)
        return hash_images(dataset.images, dataset.splits)

    write_files(tmp_path, {f"{c}/{i}.png": encode_png(i, k) for k, c in enumerate("ab") for i in range(8)})
    before = content()
    assert content() == before
    assert content(seed=1) != before  # other splits
    write_files(tmp_path, {"a/3.png": encode_png(99)})
    assert content() != before


def hash_task(task: str, data: Path) -> str:
    targets = find_task(task).targets
    dataset = build_dataset(build_index(data), PreprocessingSpec(8, 8), SplitConfig(), 0, targets=targets)
    return hash_images(dataset.images, dataset.splits, are_masks=targets.are_masks)


def test_another_mask_with_the_same_classes_is_another_search(tmp_path: Path) -> None:
    before = hash_task("segmentation", draw_scenes(tmp_path, 6, 3))
    assert hash_task("segmentation", tmp_path) == before
    file = tmp_path / "train" / "masks" / "0.png"
    mask = np.array(Image.open(file))
    Image.fromarray(mask[::-1].copy()).save(file)
    assert hash_task("segmentation", tmp_path) != before


def test_another_label_of_an_image_is_another_search(tmp_path: Path) -> None:
    manifest = write_label_sets(tmp_path, 24)
    before = hash_task("multi_label", manifest)
    with manifest.open(encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    row = next(row for row in rows if row[1] == "blue")
    row[1] = "blue;red"
    with manifest.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    assert hash_task("multi_label", manifest) != before


def test_that_nothing_smaller_meets_the_budget_is_said_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It once was a model with 1.0 times fewer parameters than itself."""
    original = CompressionCandidate("original", None, "float32", (), 0.5, 10, parameters=500, bytes=1000, latency=2.0)
    result = CompressionResult(tmp_path, (original,), ("original",), original, None, original, ())
    print_compression(result)
    text = capsys.readouterr().out
    assert "best       original: no smaller candidate meets the budget" in text
    assert "times fewer" not in text
