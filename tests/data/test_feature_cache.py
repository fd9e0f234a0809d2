"""The feature cache: reused for the same pixels and layers only, and never wrong."""

from __future__ import annotations

import mmap
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from networks import random_images
from sightline.data import cache, feature_cache
from sightline.data.types import Subset


def make_subset(rows: list[int], seed: int = 0) -> Subset:
    pixels = random_images(40, 8, seed=seed)
    return Subset(pixels, np.array(rows), np.zeros(len(rows), np.int32), tuple(map(str, rows)))


VALUES = np.random.default_rng(0).normal(size=(70, 5)).astype(np.float32)


def test_what_was_saved_is_found(own_cache: Path) -> None:
    assert feature_cache.load_features("0" * 32) is None
    feature_cache.save_features("0" * 32, VALUES)
    loaded = feature_cache.load_features("0" * 32)
    assert loaded is not None
    np.testing.assert_array_equal(loaded, VALUES)


def test_a_name_tells_pixels_their_order_and_the_maker_apart() -> None:
    subset = make_subset([1, 2, 3])
    others = [
        feature_cache.feature_key(make_subset([1, 3, 2]), b"net", 1),
        feature_cache.feature_key(make_subset([1, 2]), b"net", 1),
        feature_cache.feature_key(make_subset([1, 2, 3], seed=1), b"net", 1),
        feature_cache.feature_key(subset, b"nets", 1),
        feature_cache.feature_key(subset, b"net", 2),
    ]
    assert feature_cache.feature_key(subset, b"net", 1) == feature_cache.feature_key(make_subset([1, 2, 3]), b"net", 1)
    assert len({feature_cache.feature_key(subset, b"net", 1), *others}) == 6
    moved = Subset(subset.pixels[[5, 1, 2, 3]], np.array([1, 2, 3]), subset.labels, subset.paths)
    assert feature_cache.feature_key(moved, b"net", 1) == feature_cache.feature_key(subset, b"net", 1), (
        "where the rows lie does not matter"
    )


@pytest.mark.parametrize("name", ["features.npy", "meta.json"])
def test_damaged_features_are_gone(name: str, own_cache: Path) -> None:
    feature_cache.save_features("0" * 32, VALUES)
    file = own_cache / ("0" * 32) / name
    content = bytearray(file.read_bytes())
    content[-10] ^= 64
    file.write_bytes(content)
    assert feature_cache.load_features("0" * 32) is None
    assert not file.parent.exists()


def test_they_make_room_and_give_way(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGHTLINE_CACHE_LIMIT", str(2 * VALUES.nbytes))
    feature_cache.save_features("0" * 32, VALUES)
    assert not own_cache.exists(), "a quarter of the limit at most"
    monkeypatch.setenv("SIGHTLINE_CACHE_LIMIT", str(5 * VALUES.nbytes))
    for number in range(6):
        feature_cache.save_features(f"{number:032d}", VALUES)
    total_bytes = sum(file.stat().st_size for file in own_cache.rglob("*.npy"))
    assert 0 < total_bytes <= cache.size_limit()


def test_a_folder_that_cannot_be_written_is_not_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SIGHTLINE_CACHE", str(tmp_path / "file"))
    feature_cache.save_features("0" * 32, VALUES)
    assert feature_cache.load_features("0" * 32) is None


def compute_until(name: str, array: Any, upto: int) -> int:
    """Compute rows in blocks of 10, interrupted at row `upto`; return how many were restored at the start."""
    with suppress(KeyboardInterrupt), feature_cache.resumable_features(name, array) as (known, keep):
        for start in range(known, len(array), 10):
            if start == upto:
                raise KeyboardInterrupt
            array[start : start + 10] = start
            keep(start, min(start + 10, len(array)))
    return known


def test_rows_that_were_computed_are_not_computed_again(own_cache: Path) -> None:
    name = "0" * 32
    assert compute_until(name, np.zeros((35, 2, 3), np.float32), upto=20) == 0
    assert compute_until(name, np.zeros((35, 2, 3), np.float32), upto=30) == 20
    last = np.zeros((35, 2, 3), np.float32)
    assert compute_until(name, last, upto=99) == 30
    assert last[:, 1, 2].tolist() == [row // 10 * 10 for row in range(35)]
    assert not list(own_cache.iterdir()), "what is done leaves nothing"


@pytest.mark.parametrize("damage", ["cut", "flipped", "other"])
def test_rows_that_were_not_written_whole_are_computed_again(own_cache: Path, damage: str) -> None:
    name = "0" * 32
    compute_until(name, np.zeros((35, 2, 3), np.float32), upto=20)
    (file,) = own_cache.rglob("rows")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes({"cut": bytes(data[:-1]), "flipped": bytes(data), "other": b"\xff" * 500}[damage])
    last = np.zeros((35, 2, 3), np.float32)
    assert compute_until(name, last, upto=99) == (0 if damage == "other" else 10)
    assert last[:, 0, 0].tolist() == [row // 10 * 10 for row in range(35)]


def test_two_that_compute_the_same_do_not_mix(own_cache: Path) -> None:
    name, first, second = "0" * 32, np.zeros((20, 1), np.float32), np.ones((20, 1), np.float32)
    with feature_cache.resumable_features(name, first) as (_, keep):
        keep(0, 10)
        with feature_cache.resumable_features(name, second) as (known, also):
            assert known == 0
            also(0, 20)
        with feature_cache.resumable_features(None, second) as (known, also):
            also(0, 20)
    assert not list(own_cache.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_features_that_were_read_can_leave_memory(own_cache: Path) -> None:
    def count_file_pages() -> int:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[2])

    features = np.arange(1 << 22, dtype=np.float32).reshape(-1, 64)
    feature_cache.save_features("0" * 32, features)
    loaded = feature_cache.load_features("0" * 32)
    assert loaded is not None
    assert loaded.sum() > 0  # reads all of it
    before = count_file_pages()
    cache.release_pages(loaded)
    pages = features.nbytes // mmap.PAGESIZE
    assert before - count_file_pages() > 0.9 * pages
    assert np.array_equal(loaded, features)
    cache.release_pages(features)  # which is not mapped: nothing happens
