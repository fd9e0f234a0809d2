"""Batches: every image once per epoch, in an order determined by seed and epoch, resumable at any step."""

from __future__ import annotations

import gc
import threading
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sightline.data.batches import epoch_order, iterate_batches
from sightline.data.types import Subset
from waiting import wait_until

pytestmark = pytest.mark.usefixtures("no_thread_left")


def make_subset(count: int) -> Subset:
    """`count` one-pixel images whose value is their position, stored in reverse after an image of another split."""
    subset_pixels = np.arange(count, dtype=np.uint8)[::-1].reshape(count, 1, 1, 1)
    pixels = np.concatenate([np.full((1, 1, 1, 1), 255, np.uint8), subset_pixels])
    rows = np.arange(count, 0, -1, dtype=np.int64)
    return Subset(pixels, rows, (np.arange(count) % 3).astype(np.int32), tuple(map(str, range(count))))


@settings(deadline=None)
@given(count=st.integers(0, 60), size=st.integers(1, 20), seed=st.integers(0, 9), epoch=st.integers(0, 9))
def test_every_image_comes_once_with_its_label(count: int, size: int, seed: int, epoch: int) -> None:
    order = epoch_order(count, seed, epoch)
    all_batches = list(iterate_batches(make_subset(count), size, order))
    assert [len(b.positions) for b in all_batches] == [size] * (count // size) + [count % size] * (count % size > 0)
    positions = np.concatenate([np.zeros(0, np.int64), *(b.positions for b in all_batches)])
    np.testing.assert_array_equal(positions, order)
    assert sorted(positions.tolist()) == list(range(count))
    for b in all_batches:
        assert [str(a.dtype) for a in (b.positions, b.pixels, b.labels)] == ["int64", "uint8", "int32"]
        assert b.pixels.shape == (len(b.positions), 1, 1, 1)
        np.testing.assert_array_equal(b.pixels.ravel(), b.positions)
        np.testing.assert_array_equal(b.labels, b.positions % 3)


@settings(deadline=None)
@given(count=st.integers(0, 40), size=st.integers(1, 12), start=st.integers(0, 50))
def test_a_start_resumes_exactly(count: int, size: int, start: int) -> None:
    order = epoch_order(count, 5, 2)
    whole = list(iterate_batches(make_subset(count), size, order))
    rest = list(iterate_batches(make_subset(count), size, order, start))
    assert len(rest) == max(len(whole) - start, 0)
    for a, b in zip(whole[start:], rest, strict=True):
        np.testing.assert_array_equal(a.positions, b.positions)
        np.testing.assert_array_equal(a.pixels, b.pixels)
        np.testing.assert_array_equal(a.labels, b.labels)


def test_without_an_order_images_come_as_they_lie() -> None:
    assert [b.positions.tolist() for b in iterate_batches(make_subset(5), 2)] == [[0, 1], [2, 3], [4]]


def test_an_empty_split_gives_no_batch() -> None:
    assert list(iterate_batches(make_subset(0), 4)) == []


def test_the_order_is_a_matter_of_seed_and_epoch_alone() -> None:
    first = epoch_order(100, 7, 3)
    np.random.default_rng(0).random(10)
    np.testing.assert_array_equal(first, epoch_order(100, 7, 3))
    others = [epoch_order(100, 7, 4), epoch_order(100, 8, 3), epoch_order(100, 3, 7)]
    assert not any(np.array_equal(first, other) for other in others)
    assert not np.array_equal(first, np.arange(100))


def test_batches_are_copies_of_a_map_on_disk(tmp_path: Path) -> None:
    np.save(tmp_path / "pixels.npy", make_subset(6).pixels)
    mapped = np.load(tmp_path / "pixels.npy", mmap_mode="r")
    one = make_subset(6)
    (batch,) = iterate_batches(Subset(mapped, one.rows, one.labels, one.paths), 10)
    assert batch.pixels.flags.writeable
    assert not np.shares_memory(batch.pixels, mapped)
    np.testing.assert_array_equal(batch.pixels.ravel(), np.arange(6))


class TrackedPixels(np.ndarray[Any, np.dtype[np.uint8]]):
    """Pixels that record every read and its thread."""

    reads: list[str]

    def __getitem__(self, key: Any) -> Any:
        self.reads.append(threading.current_thread().name)
        if len(self.reads) == 3 and getattr(self, "broken", False):
            raise OSError("the disk is gone")
        return np.asarray(self)[key]


def tracked_subset(count: int, *, broken: bool = False) -> tuple[Subset, list[str]]:
    one = make_subset(count)
    pixels = one.pixels.view(TrackedPixels)
    pixels.reads = []
    pixels.broken = broken  # type: ignore[attr-defined]  # a test's own mark
    return Subset(pixels, one.rows, one.labels, one.paths), pixels.reads


def test_one_batch_is_gathered_ahead_in_another_thread() -> None:
    images, reads = tracked_subset(10)
    flow = iterate_batches(images, 2)
    assert reads == []
    next(flow)
    second = next(flow)
    assert second.positions.tolist() == [2, 3]
    wait_until(lambda: len(reads) == 3)  # the third is being gathered; closing would cancel it if it had not begun
    flow.close()
    assert len(reads) == 3
    assert threading.current_thread().name not in reads


def test_stopping_early_leaves_no_thread() -> None:
    assert len(list(islice(iterate_batches(make_subset(50), 1), 3))) == 3
    gc.collect()


def test_a_fault_while_gathering_reaches_the_reader() -> None:
    images, _ = tracked_subset(10, broken=True)
    positions = []
    with pytest.raises(OSError, match="the disk is gone"):  # noqa: PT012  # it must come after what was sound
        for batch in iterate_batches(images, 2):
            positions.append(batch.positions.tolist())  # noqa: PERF401  # the loop raises
    assert positions == [[0, 1], [2, 3]]


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_features_may_stand_in_the_place_of_pixels(dtype: Any) -> None:
    features: NDArray[Any] = np.arange(12).reshape(4, 3).astype(dtype)
    (batch,) = iterate_batches(Subset(features, np.array([3, 1]), np.array([0, 1], np.int32), ("a", "b")), 4)
    assert batch.pixels.dtype == dtype
    assert batch.pixels.tolist() == [[9, 10, 11], [3, 4, 5]]
