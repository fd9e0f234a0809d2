"""Leakage between splits: found once, stored, and distinguished as identical files or near duplicates."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sightline import jsonio
from sightline.config import SplitConfig
from sightline.data.checks import leakage
from sightline.data.checks.leakage import (
    Leak,
    SmallImages,
    find_leaks,
    find_near_contents,
    leaked_contents,
    make_small_images,
)
from sightline.data.dataset import DecodedDataset, build_dataset
from sightline.data.indexing import build_index
from sightline.data.types import Split
from sightline.errors import ModelError
from sightline.preprocessing import PreprocessingSpec
from synthetic_images import draw_scene, encode

TRAIN, TEST = ("train", "test")


def shrink(data: DecodedDataset) -> SmallImages:
    small_set = make_small_images(data.pixels, data.rows, [p.sha256 for p in data.images])
    assert small_set is not None
    return small_set


@pytest.fixture
def data(tmp_path: Path) -> DecodedDataset:
    """Ten scenes of two classes, with one file in training and test, and a smaller copy of another in test."""
    files = {f"train/{'ab'[i % 2]}/{i}.png": encode(draw_scene(i)) for i in range(8)}
    files |= {f"test/{'ab'[i % 2]}/{i}.png": encode(draw_scene(i)) for i in (8, 9)}
    files["test/a/copy.png"] = files["train/a/0.png"]
    files["test/b/smaller.jpg"] = encode(draw_scene(1).resize((100, 88)), "JPEG", quality=80)
    for name, content in files.items():
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return build_dataset(
        build_index(tmp_path / "data"), PreprocessingSpec(48, 48), SplitConfig(validation=0.0), 0, keep=False
    )


def test_the_same_file_and_near_duplicates_in_two_splits(data: DecodedDataset) -> None:
    leaks = find_leaks(data, shrink(data).find_groups())
    assert [(leak.kind, {row.path for row in leak.images}) for leak in leaks] == [
        ("identical", {"train/a/0.png", "test/a/copy.png"}),
        ("near_duplicates", {"train/b/1.png", "test/b/smaller.jpg"}),
    ]
    sha = {p.path: p.sha256 for p in data.images}
    assert leaked_contents(leaks, "test") == {
        sha["test/a/copy.png"]: "identical",
        sha["test/b/smaller.jpg"]: "near_duplicates",
    }
    assert leaked_contents(leaks, "validation") == {}
    assert [leak.kind for leak in find_leaks(data)] == ["identical"]


def test_validation_leaks_from_training_only(data: DecodedDataset) -> None:
    splits: tuple[Split, ...] = tuple("validation" if split == "train" else split for split in data.splits)
    leaks = find_leaks(replace(data, splits=splits), shrink(data).find_groups())
    assert leaked_contents(leaks, "validation") == {}
    assert len(leaked_contents(leaks, "test")) == 2


def test_without_shared_images_there_is_no_leakage(data: DecodedDataset) -> None:
    splits: tuple[Split, ...] = tuple("train" for _ in data.splits)
    assert find_leaks(replace(data, splits=splits), shrink(data).find_groups()) == ()


def test_leaks_come_back(data: DecodedDataset) -> None:
    leaks = find_leaks(data, shrink(data).find_groups())
    assert tuple(jsonio.build(Leak, json.loads(json.dumps(leak.to_dict())), "a line") for leak in leaks) == leaks


def test_small_images_come_back_and_find_near_duplicates_elsewhere(data: DecodedDataset, tmp_path: Path) -> None:
    sha = {p.path: p.sha256 for p in data.images}
    whole = shrink(data)
    known = whole.select({p.sha256 for p, split in zip(data.images, data.splits, strict=True) if split == "train"})
    with (tmp_path / "thumbnails.npz").open("wb") as file:
        known.save(file)
    loaded = SmallImages.load(tmp_path / "thumbnails.npz")
    assert loaded.sha256 == known.sha256
    assert find_near_contents(loaded, whole) == {sha["test/b/smaller.jpg"]}, "identical ones are not near"
    none = loaded.select(set())
    assert find_near_contents(none, whole) == set()
    assert find_near_contents(loaded, none) == set()
    (tmp_path / "thumbnails.npz").write_bytes(b"PK")
    with pytest.raises(ModelError, match=r"thumbnails\.npz cannot be read: .* Delete it"):
        SmallImages.load(tmp_path / "thumbnails.npz")


def test_blank_images_say_nothing_and_too_many_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.zeros((2, 8, 8, 1), np.uint8)
    pixels[1, 0, 0] = 255
    small_set = make_small_images(pixels, np.arange(2), ["blank", "dot"])
    assert small_set is not None
    assert small_set.sha256 == ("dot",)
    monkeypatch.setattr(leakage, "MAX_IMAGES", 1)
    assert make_small_images(pixels, np.arange(2), ["blank", "dot"]) is None
