"""Boundary F1: how well the outlines of predicted masks follow the true ones.

A boundary pixel of a class has a direct neighbor of another class. It counts as matched if the other
mask has a boundary pixel of the same class within a tolerance, 0.75% of the diagonal of the mask (Csurka et al., 2013,
"What is a good evaluation measure for semantic segmentation?"), rounded up to whole pixels as in DAVIS (Perazzi et al.,
2016). Precision is the matched fraction of the predicted boundary, recall that of the true one, and F1 their harmonic
mean for one class in one image. The F1 of a class is the mean over the images whose true or predicted mask has a
boundary of it; the metric is the mean over the classes.

Image edges do not count as boundaries, nor do edges to pixels without a class, which are ignored.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sightline.data.masks import VOID

TOLERANCE = 0.0075  # fraction of the diagonal
BITS = 64  # classes whose boundaries are dilated together, each in one bit of a number


def count_boundaries(predicted: NDArray[np.uint8], true: NDArray[np.uint8], classes: int) -> NDArray[np.int64]:
    """Return the boundary pixels of each class in two masks uint8 [H, W]: int64 [K, 4].

    The columns are the boundary pixels of the predicted mask, those of them that are matched in the true mask, and the
    same two counts for the true mask.
    """
    known = true != VOID
    radius = choose_radius(*true.shape)
    edges = [find_edges(mask, known) for mask in (predicted, true)]
    counts = np.zeros((classes, 4), np.int64)
    for i, (mask, edge, other, other_edge) in enumerate(
        ((predicted, edges[0], true, edges[1]), (true, edges[1], predicted, edges[0]))
    ):
        labels = mask[edge]
        is_found = _find_near(mask, edge, other, other_edge, radius)
        counts[:, 2 * i] = np.bincount(labels, minlength=classes)[:classes]
        counts[:, 2 * i + 1] = np.bincount(labels[is_found], minlength=classes)[:classes]
    return counts


def choose_radius(height: int, width: int) -> int:
    """Return the tolerance in pixels, at least 1.

    >>> choose_radius(180, 240), choose_radius(360, 480), choose_radius(64, 64)
    (3, 5, 1)
    """
    return max(1, math.ceil(TOLERANCE * math.hypot(height, width)))


def find_edges(mask: NDArray[np.uint8], known: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which `known` pixels of a mask [H, W] have a known neighbor of another class, bool [H, W]."""
    edges = np.zeros(mask.shape, bool)
    for first, second in (
        ((slice(1, None), slice(None)), (slice(None, -1), slice(None))),
        ((slice(None), slice(1, None)), (slice(None), slice(None, -1))),
    ):
        differs = (mask[first] != mask[second]) & known[first] & known[second]
        edges[first] |= differs
        edges[second] |= differs
    return edges


def compute_boundary_f1(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the F1 of counts [..., 4] of `count_boundaries`, float64 [...]; NaN where neither mask has a boundary."""
    predicted, predicted_found, true, true_found = np.moveaxis(counts.astype(np.float64), -1, 0)
    precision, recall = (
        np.divide(hits, total, out=np.zeros(np.shape(total)), where=total > 0)
        for hits, total in ((predicted_found, predicted), (true_found, true))
    )
    both = precision + recall
    f1 = np.divide(2 * precision * recall, both, out=np.zeros(np.shape(both)), where=both > 0)
    return np.where(predicted + true > 0, f1, np.nan)


def _find_near(
    mask: NDArray[np.uint8],
    edge: NDArray[np.bool_],
    other: NDArray[np.uint8],
    other_edge: NDArray[np.bool_],
    radius: int,
) -> NDArray[np.bool_]:
    """Return which edge pixels of `mask`, in order, have an edge pixel of their class in `other` within `radius`."""
    labels, is_near = mask[edge], np.zeros(int(edge.sum()), bool)
    for start in range(0, int(labels.max(initial=0)) + 1, BITS):
        rows = (labels >= start) & (labels < start + BITS)
        if not rows.any():
            continue
        inside = other_edge & (other >= start) & (other - start < BITS)
        bits = np.where(
            inside, np.uint64(1) << (other.astype(np.uint64) - np.uint64(start)) % np.uint64(BITS), np.uint64(0)
        )
        near = _dilate(bits, radius)[edge][rows]
        is_near[rows] = (near >> (labels[rows].astype(np.uint64) - np.uint64(start)) & np.uint64(1)).astype(bool)
    return is_near


def _dilate(bits: NDArray[np.uint64], radius: int) -> NDArray[np.uint64]:
    """Return the union of the bits [H, W] of all pixels within a distance of `radius`, uint64 [H, W]."""
    height, width = bits.shape
    padded = np.pad(bits, radius)
    rows = padded.copy()  # the union over the columns up to `reach` away
    near = np.zeros_like(bits)
    reach = 0
    for down in range(radius, -1, -1):
        for step in range(reach + 1, math.isqrt(radius**2 - down**2) + 1):
            rows[:, step:] |= padded[:, :-step]
            rows[:, :-step] |= padded[:, step:]
            reach = step
        for top in {radius - down, radius + down}:
            near |= rows[top : top + height, radius : radius + width]
    return near
