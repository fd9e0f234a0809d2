"""Sources from arrays in memory: labels, and arrays that do not match."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sightline.data.sources.arrays import list_array_items
from sightline.errors import DataError


@pytest.mark.parametrize(
    ("labels", "classes", "expected"),
    [
        ([1, 0, 1], None, ["1", "0", "1"]),
        ([[1], [0], [10]], None, ["1", "0", "10"]),
        ([20240101, 20240102, 10**18], None, ["20240101", "20240102", "1000000000000000000"]),
        (np.array([1, 0, 1], np.uint8), ["cat", "dog"], ["dog", "cat", "dog"]),
        (np.array([1, 0, 1]), np.array(["cat", "dog"]), ["dog", "cat", "dog"]),
        ([1, 0, 1], (name for name in ("cat", "dog")), ["dog", "cat", "dog"]),
        (np.array([0, 1, 0]), [7, 9], ["7", "9", "7"]),
        (["cat", "dog", "猫"], None, ["cat", "dog", "猫"]),
        ([b"cat", "猫".encode(), b"cat"], None, ["cat", "猫", "cat"]),
    ],
    ids=["numbers", "columns", "dates", "named", "array", "generator", "numbers as names", "names", "bytes"],
)
def test_labels_of_arrays(labels: Any, classes: Any, expected: list[str]) -> None:
    items = list_array_items(np.zeros((3, 4, 4), np.uint8), labels, "mine", "test", classes)
    assert [e.label for e in items] == expected
    assert [e.path for e in items] == ["mine[0]", "mine[1]", "mine[2]"]
    assert {e.split for e in items} == {"test"}


@pytest.mark.parametrize(
    ("pixels", "labels", "classes", "message"),
    [
        (np.zeros((3, 4, 4), np.uint8), [0, 1], None, "mine: 3 images but 2 labels."),
        (
            np.zeros((2, 4, 4), np.uint8),
            [0, 2],
            ["a", "b"],
            "mine: labels run from 0 to 2, but there are 2 classes, numbered from 0.",
        ),
        (
            np.zeros((2, 4, 4), np.uint8),
            [-1, 1],
            None,
            "mine: labels run from -1 to 1, but classes are numbered from 0.",
        ),
        (
            np.zeros((2, 4, 4)),
            [0, 1],
            None,
            "mine: pixels must be uint8 [N, H, W] or [N, H, W, 1, 3 or 4], got float64",
        ),
        (np.zeros((2, 64), np.uint8), [0, 1], None, ": for rows of pixels, use x.reshape(len(x), height, width)."),
        (
            np.zeros(64, np.uint8),
            [0],
            None,
            "mine: pixels must be uint8 [N, H, W] or [N, H, W, 1, 3 or 4], got uint8 [64].",
        ),
        (
            np.zeros((2, 3, 8, 8), np.uint8),
            [0, 1],
            None,
            "got uint8 [2, 3, 8, 8]: the channels come first, so use x.transpose(0, 2, 3, 1).",
        ),
    ],
    ids=["count", "high", "low", "floats", "flat", "one axis", "channels first"],
)
def test_arrays_that_do_not_fit_are_refused(pixels: Any, labels: Any, classes: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        list_array_items(pixels, labels, "mine", classes=classes)
    assert message in str(caught.value)


def test_a_missing_value_of_pandas_or_numpy_is_refused() -> None:
    pandas = pytest.importorskip("pandas")
    for missing in (pandas.NA, pandas.NaT, np.float32("nan")):
        with pytest.raises(DataError, match=r"mine\[1\] has no label"):
            list_array_items(np.zeros((2, 4, 4), np.uint8), ["cat", missing], "mine")


def test_without_arrays_there_are_no_entries() -> None:
    assert list_array_items(np.zeros((0, 4, 4), np.uint8), np.zeros(0, int), "none") == []
