"""Accuracy on slices of the data: named groups of images on which a classifier is significantly worse."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import intervals
from sightline.data.batches import iterate_slices
from sightline.data.types import ImageRecord, Subset
from sightline.evaluation.bootstrap import sum_by_group
from sightline.evaluation.grouped_proportions import TAIL, find_grouped_ends
from sightline.inference.runner import choose_batch_size
from sightline.intervals import Interval

MIN_IMAGES = 10  # images in a slice and in the rest
QUANTILES = 4
MAX_VALUES = 20  # distinct values of a column that is not numeric


@dataclass(frozen=True, slots=True)
class SliceMetrics:
    """Accuracy on the `count` images of the slice `name`, and on the rest of the images.

    `interval` is the 95% interval of the accuracy: Wilson's, or that of `grouped_proportions`. `difference_interval` is
    that of `accuracy` minus `rest_accuracy`, corrected for the number of slices tested; `significantly_worse` if it is
    below 0.
    """

    name: str
    count: int
    accuracy: float
    interval: Interval
    rest_accuracy: float
    difference_interval: Interval
    significantly_worse: bool


def image_properties(samples: Subset, images: Sequence[ImageRecord]) -> dict[str, list[Any]]:
    """Return a value for each image: size, aspect ratio, brightness, sharpness, and each extra manifest column.

    Size is the square root of width times height in pixels, aspect is width by height, both as displayed. Brightness
    (0 to 255) is the mean, sharpness the variance of the Laplacian, of the grayscale pixels that the model sees.
    """
    recorded = record_properties(images)
    columns: dict[str, list[Any]] = {name: recorded.pop(name) for name in ("size", "aspect ratio")}
    columns |= {"brightness": [], "sharpness": []}
    for rows in iterate_slices(len(samples), choose_batch_size(samples.pixels.shape[1:])):
        gray = _average_channels(samples.take(rows))
        columns["brightness"] += gray.mean((1, 2)).tolist()
        if min(gray.shape[1:]) >= 3:
            middle = gray[:, 1:-1, 1:-1]
            around = gray[:, :-2, 1:-1] + gray[:, 2:, 1:-1] + gray[:, 1:-1, :-2] + gray[:, 1:-1, 2:]
            columns["sharpness"] += (around - 4 * middle).var((1, 2)).tolist()
    if len(columns["sharpness"]) < len(images):
        del columns["sharpness"]
    return columns | recorded


def _average_channels(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return ``pixels.mean(3, dtype=np.float32)`` of [N, H, W, C], bit for bit, in a tenth of the time."""
    total = pixels[..., 0].astype(np.uint16)
    for channel in range(1, pixels.shape[3]):
        total += pixels[..., channel]
    return np.divide(total, pixels.shape[3], dtype=np.float32)


def record_properties(images: Sequence[ImageRecord]) -> dict[str, list[Any]]:
    """Return the `image_properties` that need no pixels: size, aspect ratio, and each extra manifest column."""
    columns: dict[str, list[Any]] = {
        "size": [math.sqrt(p.width * p.height) for p in images],
        "aspect ratio": [p.width / max(p.height, 1) for p in images],
    }
    for column in sorted({key for p in images for key in p.extra}):
        columns[column] = [p.extra.get(column, "") for p in images]
    return columns


def slice_masks(name: str, values: Sequence[Any]) -> dict[str, NDArray[np.bool_]]:
    """Return the slices of one property, bool [N] each: quartiles of numbers, or one slice for each other value.

    >>> list(slice_masks("size", [1.0, 2, 3, 4]))
    ['size up to 1', 'size 1 to 2', 'size 2 to 3', 'size above 3']
    """
    numbers = _parse_numbers(values)
    if numbers is None:
        words = Counter(map(str, values)).most_common(MAX_VALUES)
        texts = np.array([str(v) for v in values], dtype=np.str_)
        return (
            {f"{name} {word}" if word else f"{name} unset": texts == word for word, _ in words}
            if len(words) > 1
            else {}
        )
    fractions = np.arange(1, QUANTILES) / QUANTILES
    cuts = sorted(set(np.quantile(numbers, fractions, method="lower").tolist()) - {float(numbers.max())})
    if not cuts:
        return {}
    ends = _format_cuts(cuts)
    ranges = [f"up to {ends[0]}", *(f"{low} to {high}" for low, high in pairwise(ends)), f"above {ends[-1]}"]
    return {
        f"{name} {text}": (numbers > low) & (numbers <= high)
        for text, (low, high) in zip(ranges, pairwise([-math.inf, *cuts, math.inf]), strict=True)
    }


def _format_cuts(cuts: Sequence[float]) -> list[str]:
    """Return distinct numbers with the fewest digits that distinguish them, at least four, and all before the point.

    >>> _format_cuts([1.75, 12345.678]), _format_cuts([202403.0, 202403.2])
    (['1.75', '12346'], ['202403', '202403.2'])
    """
    digits = max(4, *(len(f"{abs(cut):.0f}") for cut in cuts))
    while len(texts := {f"{cut:.{digits}g}": cut for cut in cuts}) < len(cuts):
        digits += 1
    return list(texts)


def _parse_numbers(values: Sequence[Any]) -> NDArray[np.float64] | None:
    try:
        numbers = np.array([float(v) for v in values])
    except ValueError:
        return None
    return numbers if len(numbers) and np.isfinite(numbers).all() else None


def find_slices(columns: Mapping[str, Sequence[Any]]) -> dict[str, NDArray[np.bool_]]:
    """Return the slices of all properties, bool [N] each, that have at least ten images inside and outside."""
    masks = {key: at for name, column in columns.items() for key, at in slice_masks(name, column).items()}
    return {key: at for key, at in masks.items() if MIN_IMAGES <= at.sum() <= len(at) - MIN_IMAGES}


def evaluate_slices(
    masks: Mapping[str, NDArray[np.bool_]], correct: NDArray[np.bool_], groups: NDArray[np.int64] | None = None
) -> tuple[SliceMetrics, ...]:
    """Return the metrics of the slices that `find_slices` returned, worst gap first; `correct` is bool [N].

    The interval of the gap between slice and rest is built from their exact intervals, at 95% for all slices together
    (Bonferroni). Wilson's are too short there: at such levels they are wrong up to three times as often as they should.
    With `groups` int64 [N], from 0, both intervals are built from those of `grouped_proportions`, and slices with
    images of only one group, inside or outside, are left out: they would describe that group.
    """
    if groups is None:
        tail = TAIL / max(len(masks), 1)
        results = [_evaluate_slice(name, correct[at], correct[~at], tail) for name, at in masks.items()]
    else:
        results = _evaluate_grouped(masks, correct, groups)
    return tuple(sorted(results, key=lambda s: s.accuracy - s.rest_accuracy))


def _evaluate_slice(name: str, inside: NDArray[np.bool_], outside: NDArray[np.bool_], tail: float) -> SliceMetrics:
    hits, count, others, rest = int(inside.sum()), len(inside), int(outside.sum()), len(outside)
    p, q = hits / count, others / rest
    ends, other_ends = (intervals.exact_interval(*counts, tail) for counts in ((hits, count), (others, rest)))
    gap = intervals.subtract_intervals(p, ends, q, other_ends)
    return SliceMetrics(name, count, p, intervals.wilson_interval(hits, count), q, gap, gap.high < 0)


def _evaluate_grouped(
    masks: Mapping[str, NDArray[np.bool_]], correct: NDArray[np.bool_], groups: NDArray[np.int64]
) -> list[SliceMetrics]:
    sums = {name: sum_by_group(np.stack([at, ~at], 1).astype(np.float64), groups) for name, at in masks.items()}
    hits = {
        name: sum_by_group(np.stack([at & correct, ~at & correct], 1).astype(np.float64), groups)
        for name, at in masks.items()
    }
    tested = [name for name, counts in sums.items() if ((counts > 0).sum(0) > 1).all()]
    results = []
    for name in tested:
        (hits_inside, hits_outside), (count, rest) = hits[name].sum(0), sums[name].sum(0)
        p, q = float(hits_inside / count), float(hits_outside / rest)
        usual, wide = (
            [Interval(*ends) for ends in find_grouped_ends(hits[name], sums[name], tail).T.tolist()]
            for tail in (TAIL, TAIL / len(tested))
        )
        gap = intervals.subtract_intervals(p, wide[0], q, wide[1])
        results.append(SliceMetrics(name, int(count), p, usual[0], q, gap, gap.high < 0))
    return results
