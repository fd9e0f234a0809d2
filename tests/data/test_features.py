"""The feature cache: reused for the same pixels and layers only, and never wrong."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from networks import pictures
from sightline.data import cache, features
from sightline.records import Samples


def samples(rows: list[int], seed: int = 0) -> Samples:
    pixels = pictures(40, 8, seed=seed)
    return Samples(pixels, np.array(rows), np.zeros(len(rows), np.int32), tuple(map(str, rows)))


VALUES = np.random.default_rng(0).normal(size=(70, 5)).astype(np.float32)


def test_what_was_saved_is_found(own_cache: Path) -> None:
    assert features.load("0" * 32) is None
    features.save("0" * 32, VALUES)
    found = features.load("0" * 32)
    assert found is not None
    np.testing.assert_array_equal(found, VALUES)


def test_a_name_tells_pixels_their_order_and_the_maker_apart() -> None:
    given = samples([1, 2, 3])
    others = [
        features.key(samples([1, 3, 2]), b"net", 1),
        features.key(samples([1, 2]), b"net", 1),
        features.key(samples([1, 2, 3], seed=1), b"net", 1),
        features.key(given, b"nets", 1),
        features.key(given, b"net", 2),
    ]
    assert features.key(given, b"net", 1) == features.key(samples([1, 2, 3]), b"net", 1)
    assert len({features.key(given, b"net", 1), *others}) == 6
    moved = Samples(given.pixels[[5, 1, 2, 3]], np.array([1, 2, 3]), given.labels, given.paths)
    assert features.key(moved, b"net", 1) == features.key(given, b"net", 1), "where the rows lie does not matter"


@pytest.mark.parametrize("name", ["features.npy", "meta.json"])
def test_damaged_features_are_gone(name: str, own_cache: Path) -> None:
    features.save("0" * 32, VALUES)
    file = own_cache / ("0" * 32) / name
    content = bytearray(file.read_bytes())
    content[-10] ^= 64
    file.write_bytes(content)
    assert features.load("0" * 32) is None
    assert not file.parent.exists()


def test_they_make_room_and_give_way(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGHTLINE_CACHE_LIMIT", str(2 * VALUES.nbytes))
    features.save("0" * 32, VALUES)
    assert not own_cache.exists(), "a quarter of the limit at most"
    monkeypatch.setenv("SIGHTLINE_CACHE_LIMIT", str(5 * VALUES.nbytes))
    for number in range(6):
        features.save(f"{number:032d}", VALUES)
    kept = sum(file.stat().st_size for file in own_cache.rglob("*.npy"))
    assert 0 < kept <= cache.limit()


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SIGHTLINE_CACHE", str(tmp_path / "file"))
    features.save("0" * 32, VALUES)
    assert features.load("0" * 32) is None


def partly(name: str, array: Any, upto: int) -> int:
    """Compute rows in blocks of 10, interrupted at row `upto`; return how many were restored at the start."""
    with suppress(KeyboardInterrupt), features.begun(name, array) as (known, keep):
        for start in range(known, len(array), 10):
            if start == upto:
                raise KeyboardInterrupt
            array[start : start + 10] = start
            keep(start, min(start + 10, len(array)))
    return known


def test_rows_that_were_computed_are_not_computed_again(own_cache: Path) -> None:
    name = "0" * 32
    assert partly(name, np.zeros((35, 2, 3), np.float32), upto=20) == 0
    assert partly(name, np.zeros((35, 2, 3), np.float32), upto=30) == 20
    last = np.zeros((35, 2, 3), np.float32)
    assert partly(name, last, upto=99) == 30
    assert last[:, 1, 2].tolist() == [row // 10 * 10 for row in range(35)]
    assert not list(own_cache.iterdir()), "what is done leaves nothing"


@pytest.mark.parametrize("damage", ["cut", "flipped", "other"])
def test_rows_that_were_not_written_whole_are_computed_again(own_cache: Path, damage: str) -> None:
    name = "0" * 32
    partly(name, np.zeros((35, 2, 3), np.float32), upto=20)
    (file,) = own_cache.rglob("rows")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes({"cut": bytes(data[:-1]), "flipped": bytes(data), "other": b"\xff" * 500}[damage])
    last = np.zeros((35, 2, 3), np.float32)
    assert partly(name, last, upto=99) == (0 if damage == "other" else 10)
    assert last[:, 0, 0].tolist() == [row // 10 * 10 for row in range(35)]


def test_two_that_compute_the_same_do_not_mix(own_cache: Path) -> None:
    name, first, second = "0" * 32, np.zeros((20, 1), np.float32), np.ones((20, 1), np.float32)
    with features.begun(name, first) as (_, keep):
        keep(0, 10)
        with features.begun(name, second) as (known, also):
            assert known == 0
            also(0, 20)
        with features.begun(None, second) as (known, also):
            also(0, 20)
    assert not list(own_cache.iterdir())
