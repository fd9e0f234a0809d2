"""Normalized cross-correlation of image pairs over offsets and scales, which verifies candidate near duplicates.

Gray images of 32x32 pixels are enlarged to 64x64, so that offsets are half pixels, and band-passed: coarse shading and
the finest detail, which recompression changes, are removed. Each image of a pair is scaled to 1.0, 0.975 ... 0.9 of its
side and matched with the other at every offset (J. P. Lewis, "Fast Normalized Cross-Correlation", 1995), because one
may be a slight crop of the other. Copies reach 0.92 and more, unrelated photographs 0.4; unrelated images of one
aligned subject, such as chest X-rays, 0.85 to 0.93.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

SIDE = 64
SIDES = (64, 62, 61, 59, 58)  # 64 pixels scaled to 1, 0.975, 0.95, 0.925 and 0.9 of a side
FINE, COARSE = 3, 9  # widths in pixels of the two running means that bound the pass band
FLAT = 1.0  # variance per pixel, in squared gray levels, below which an image is only noise
BATCH = 64  # pairs per batch: about 20 MB

Floats = NDArray[np.float32]


def correlations(small: NDArray[np.uint8], one: NDArray[np.int64], other: NDArray[np.int64]) -> Floats:
    """Return the best correlation of each pair of images, float32 [P] in -1..1.

    `small` is uint8 [N, 32, 32]; `one` and `other`, int64 [P], index the two images of each pair in it.
    """
    out = [np.empty(0, np.float32)]
    for start in range(0, len(one), BATCH):
        pair = np.concatenate([one[start : start + BATCH], other[start : start + BATCH]])
        which, place = np.unique(pair, return_inverse=True)
        a, b = place[: len(place) // 2], place[len(place) // 2 :]
        gray = _resized(small[which].astype(np.float32), SIDE)
        whole = _details(gray)
        spectrum, best = np.fft.rfft2(whole), np.full(len(a), -1, np.float32)
        for side in SIDES:
            patch, norm = np.fft.rfft2(_patches(gray, side), (SIDE, SIDE)), _norms(whole, side)
            for field, template in ((a, b), (b, a)) if side < SIDE else ((a, b),):
                free = SIDE - side + 1
                product = np.fft.irfft2(spectrum[field] * patch[template].conj(), (SIDE, SIDE))[:, :free, :free]
                np.maximum(best, (product / norm[field]).max((1, 2)), out=best)
        out.append(best)
    return np.concatenate(out)


def _details(gray: Floats) -> Floats:
    """Return the detail of images [N, H, W] that is finer than `COARSE` and coarser than `FINE`."""
    side = gray.shape[1]
    fine, coarse = _mean(side, FINE), _mean(side, COARSE)
    smooth = _both_ways(fine, gray)
    return smooth - _both_ways(coarse, smooth)


def _patches(gray: Floats, side: int) -> Floats:
    """Return the details of images [N, 64, 64] scaled to `side` pixels: [N, side, side], mean 0, norm 1."""
    patches = _details(_resized(gray, side))
    patches -= patches.mean((1, 2), keepdims=True)
    norms = np.sqrt(np.maximum((patches**2).sum((1, 2), keepdims=True), FLAT * side**2))
    normed: Floats = patches / norms
    return normed


def _norms(whole: Floats, side: int) -> Floats:
    """Return the norm of each mean-free window of `side` pixels in details [N, 64, 64]: [N, K, K]."""
    windows = _windows(side)
    total, squares = _both_ways(windows, whole), _both_ways(windows, whole**2)
    norms: Floats = np.sqrt(np.maximum(squares - total**2 / side**2, FLAT * side**2))
    return norms


@functools.cache
def _windows(side: int) -> Floats:
    """Return the matrix [64 - side + 1, 64] that sums each window of `side` pixels."""
    first = np.arange(SIDE - side + 1)[:, None]
    return ((np.arange(SIDE) >= first) & (np.arange(SIDE) < first + side)).astype(np.float32)


@functools.cache
def _mean(side: int, width: int) -> Floats:
    """Return the matrix [side, side] of a running mean over `width` pixels, with edge values repeated."""
    taken = (np.arange(side)[:, None] + np.arange(width) - width // 2).clip(0, side - 1)
    weights: Floats = (taken[:, :, None] == np.arange(side)).mean(1).astype(np.float32)
    return weights


def _resized(gray: Floats, side: int) -> Floats:
    """Resize images [N, H, H] to [N, side, side]."""
    return _both_ways(_resize(side, gray.shape[1]), gray)


def _both_ways(weights: Floats, gray: Floats) -> Floats:
    """Apply a matrix [K, H] to the rows and the columns of images [N, H, H]."""
    mapped: Floats = np.matmul(np.matmul(weights, gray), weights.T)
    return mapped


@functools.cache
def _resize(side: int, old: int) -> Floats:
    """Return the matrix [side, old] that resizes by antialiased linear interpolation."""
    step = old / side
    places = ((np.arange(side)[:, None] + 0.5) * step - 0.5).clip(0, old - 1)
    weights = np.maximum(0, 1 - np.abs(places - np.arange(old)) / max(step, 1.0))
    resized: Floats = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    return resized
