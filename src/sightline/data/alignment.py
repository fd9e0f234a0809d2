"""How well the details of two images correlate where one may be a slight crop of the other: the second look at a pair.

Images of 32x32 gray pixels are enlarged to 64x64, so that offsets are half pixels, and stripped of coarse light and
dark and of their finest detail, which recompression changes. Each of the two is scaled to 1.0, 0.975 ... 0.9 of a side
and laid on the other at every offset: normalized cross-correlation (J. P. Lewis, "Fast Normalized Cross-Correlation",
1995). Copies reach 0.92 and more, unrelated photographs 0.4; unrelated images of one aligned subject, such as chest
X-rays, 0.85 to 0.93.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

SIDE = 64
SIDES = (64, 62, 61, 59, 58)  # what 64 pixels shrink to: crops to 1, 0.975, 0.95, 0.925 and 0.9 of a side
FINE, COARSE = 3, 9  # pixels of the running means between which details lie
FLAT = 1.0  # gray levels squared per pixel: less variance than this is noise
BATCH = 64  # pairs at once: about 20 MB

Floats = NDArray[np.float32]


def correlations(small: NDArray[np.uint8], one: NDArray[np.int64], other: NDArray[np.int64]) -> Floats:
    """Return, float32 [P] in -1..1, how well the pairs (`one`, `other`, int64 [P]) of `small` correlate.

    `small` is uint8 [N, 32, 32].
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
    """Return what is finer than `COARSE` and coarser than `FINE` of images [N, H, W]."""
    side = gray.shape[1]
    fine, coarse = _mean(side, FINE), _mean(side, COARSE)
    smooth = _both_ways(fine, gray)
    return smooth - _both_ways(coarse, smooth)


def _patches(gray: Floats, side: int) -> Floats:
    """Return the details of images [N, 64, 64] shrunk to `side` pixels, [N, side, side], of mean 0 and norm 1."""
    patches = _details(_resized(gray, side))
    patches -= patches.mean((1, 2), keepdims=True)
    norms = np.sqrt(np.maximum((patches**2).sum((1, 2), keepdims=True), FLAT * side**2))
    normed: Floats = patches / norms
    return normed


def _norms(whole: Floats, side: int) -> Floats:
    """Return the norm of each window of `side` pixels, less its mean, of details [N, 64, 64]: [N, K, K]."""
    windows = _windows(side)
    total, squares = _both_ways(windows, whole), _both_ways(windows, whole**2)
    norms: Floats = np.sqrt(np.maximum(squares - total**2 / side**2, FLAT * side**2))
    return norms


@functools.cache
def _windows(side: int) -> Floats:
    """Return the map [64 - side + 1, 64] that sums up each window of `side` pixels."""
    first = np.arange(SIDE - side + 1)[:, None]
    return ((np.arange(SIDE) >= first) & (np.arange(SIDE) < first + side)).astype(np.float32)


@functools.cache
def _mean(side: int, width: int) -> Floats:
    """Return the map [side, side] that takes a running mean over `width`, repeating the values at the ends."""
    taken = (np.arange(side)[:, None] + np.arange(width) - width // 2).clip(0, side - 1)
    weights: Floats = (taken[:, :, None] == np.arange(side)).mean(1).astype(np.float32)
    return weights


def _resized(gray: Floats, side: int) -> Floats:
    """Return images [N, H, H] as [N, side, side]."""
    return _both_ways(_resize(side, gray.shape[1]), gray)


def _both_ways(weights: Floats, gray: Floats) -> Floats:
    """Apply a map [K, H] to the rows and columns of images [N, H, H]."""
    mapped: Floats = np.matmul(np.matmul(weights, gray), weights.T)
    return mapped


@functools.cache
def _resize(side: int, old: int) -> Floats:
    """Return the map [side, old] that resizes by antialiased interpolation."""
    step = old / side
    places = ((np.arange(side)[:, None] + 0.5) * step - 0.5).clip(0, old - 1)
    weights = np.maximum(0, 1 - np.abs(places - np.arange(old)) / max(step, 1.0))
    resized: Floats = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    return resized
