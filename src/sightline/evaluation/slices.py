"""Accuracy on slices of the data: named groups of images on which a classifier is significantly worse."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import intervals
from sightline.records import Interval, Picture, Samples

FEWEST = 10  # images in a slice and in the rest
QUARTERS = 4
CHUNK = 256  # images in memory at once
MOST_VALUES = 20  # of a column that is not numeric


@dataclass(frozen=True, slots=True)
class Slice:
    """Accuracy on the `count` images of the slice `name`, and on the `rest`; `worse` if significantly lower.

    `interval` is that of the accuracy (Wilson, 95%). `gap` is the interval of slice minus rest, corrected for the
    number of slices tested.
    """

    name: str
    count: int
    accuracy: float
    interval: Interval
    rest: float
    gap: Interval
    worse: bool


def properties(samples: Samples, pictures: Sequence[Picture]) -> dict[str, list[Any]]:
    """Return a value for each image: size, aspect ratio, brightness, sharpness, and each extra manifest column.

    Size is the square root of width times height in pixels, aspect is width by height, both as displayed. Brightness
    (0 to 255) is the mean, sharpness the variance of the Laplacian, of the grayscale pixels that the model sees.
    """
    found: dict[str, list[Any]] = {
        "size": [math.sqrt(p.width * p.height) for p in pictures],
        "aspect ratio": [p.width / max(p.height, 1) for p in pictures],
        "brightness": [],
        "sharpness": [],
    }
    for start in range(0, len(samples), CHUNK):
        grey = samples.take(slice(start, start + CHUNK)).mean(3, dtype=np.float32)
        found["brightness"] += grey.mean((1, 2)).tolist()
        if min(grey.shape[1:]) >= 3:
            middle = grey[:, 1:-1, 1:-1]
            around = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
            found["sharpness"] += (around - 4 * middle).var((1, 2)).tolist()
    if len(found["sharpness"]) < len(pictures):
        del found["sharpness"]
    for column in sorted({key for p in pictures for key in p.extra}):
        found[column] = [p.extra.get(column, "") for p in pictures]
    return found


def members(name: str, values: Sequence[Any]) -> dict[str, NDArray[np.bool_]]:
    """Return the slices of one property, bool [N] each: quartiles of numbers, or one slice for each other value.

    >>> list(members("size", [1.0, 2, 3, 4]))
    ['size up to 1.75', 'size 1.75 to 2.5', 'size 2.5 to 3.25', 'size above 3.25']
    """
    numbers = _numbers(values)
    if numbers is None:
        words = Counter(map(str, values)).most_common(MOST_VALUES)
        texts = np.array([str(v) for v in values], dtype=np.str_)
        return (
            {f"{name} {word}" if word else f"{name} unset": texts == word for word, _ in words}
            if len(words) > 1
            else {}
        )
    cuts = sorted(set(np.quantile(numbers, np.arange(1, QUARTERS) / QUARTERS).tolist()) - {float(numbers.max())})
    if not cuts:
        return {}
    ends = [-math.inf, *cuts, math.inf]
    found = {}
    for low, high in pairwise(ends):
        words_of = (
            f"up to {high:.4g}"
            if low == -math.inf
            else f"above {low:.4g}"
            if high == math.inf
            else f"{low:.4g} to {high:.4g}"
        )
        found[f"{name} {words_of}"] = (numbers > low) & (numbers <= high)
    return found


def _numbers(values: Sequence[Any]) -> NDArray[np.float64] | None:
    try:
        found = np.array([float(v) for v in values])
    except ValueError:
        return None
    return found if len(found) and np.isfinite(found).all() else None


def slices(values: Mapping[str, Sequence[Any]], correct: NDArray[np.bool_]) -> tuple[Slice, ...]:
    """Return all slices with at least ten images inside and outside, worst gap first; `correct` is bool [N].

    The gap between slice and rest has Newcombe's interval (`intervals.difference`), at 95% for all slices together
    (Bonferroni).
    """
    groups = {key: at for name, column in values.items() for key, at in members(name, column).items()}
    groups = {k: at for k, at in groups.items() if FEWEST <= at.sum() <= len(at) - FEWEST}
    z = NormalDist().inv_cdf(1 - 0.025 / max(len(groups), 1))
    found = [_slice(name, correct[at], correct[~at], z) for name, at in groups.items()]
    return tuple(sorted(found, key=lambda s: s.accuracy - s.rest))


def _slice(name: str, inside: NDArray[np.bool_], outside: NDArray[np.bool_], z: float) -> Slice:
    hits, count, others, rest = int(inside.sum()), len(inside), int(outside.sum()), len(outside)
    p, q = hits / count, others / rest
    gap = intervals.difference(hits, count, others, rest, z)
    return Slice(name, count, p, intervals.wilson(hits, count), q, gap, gap.high < 0)
