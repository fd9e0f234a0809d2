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
FINE_WIDTH, COARSE_WIDTH = 3, 9  # widths in pixels of the two running means that bound the pass band
MIN_VARIANCE = 1.0  # squared gray levels per pixel; below this variance, an image is only noise
BATCH = 64  # pairs per batch: about 20 MB

Floats = NDArray[np.float32]


def correlate_pairs(small: NDArray[np.uint8], first: NDArray[np.int64], second: NDArray[np.int64]) -> Floats:
    """Return the best correlation of each pair of images, float32 [P] in -1..1.

    `small` is uint8 [N, 32, 32]; `first` and `second`, int64 [P], index the two images of each pair in it.
    """
    batches = [np.empty(0, np.float32)]
    for start in range(0, len(first), BATCH):
        pair = np.concatenate([first[start : start + BATCH], second[start : start + BATCH]])
        images, positions = np.unique(pair, return_inverse=True)
        a, b = positions[: len(positions) // 2], positions[len(positions) // 2 :]
        gray = _resize_images(small[images].astype(np.float32), SIDE)
        whole = _band_pass(gray)
        spectrum, best = np.fft.rfft2(whole), np.full(len(a), -1, np.float32)
        for side in SIDES:
            patch, norm = np.fft.rfft2(_templates(gray, side), (SIDE, SIDE)), _window_norms(whole, side)
            for searched, template in ((a, b), (b, a)) if side < SIDE else ((a, b),):
                offsets = SIDE - side + 1
                product = np.fft.irfft2(spectrum[searched] * patch[template].conj(), (SIDE, SIDE))[
                    :, :offsets, :offsets
                ]
                np.maximum(best, (product / norm[searched]).max((1, 2)), out=best)
        batches.append(best)
    return np.concatenate(batches)


def _band_pass(gray: Floats) -> Floats:
    """Return the detail of images [N, H, W] that is finer than `COARSE_WIDTH` and coarser than `FINE_WIDTH`."""
    side = gray.shape[1]
    fine, coarse = (running_mean(side, width).astype(np.float32) for width in (FINE_WIDTH, COARSE_WIDTH))
    smooth = _apply_to_both_axes(fine, gray)
    return smooth - _apply_to_both_axes(coarse, smooth)


def _templates(gray: Floats, side: int) -> Floats:
    """Return the details of images [N, 64, 64] scaled to `side` pixels: [N, side, side], mean 0, norm 1."""
    patches = _band_pass(_resize_images(gray, side))
    patches -= patches.mean((1, 2), keepdims=True)
    norms = np.sqrt(np.maximum((patches**2).sum((1, 2), keepdims=True), MIN_VARIANCE * side**2))
    normed: Floats = patches / norms
    return normed


def _window_norms(details: Floats, side: int) -> Floats:
    """Return the norm of each mean-free window of `side` pixels in details [N, 64, 64]: [N, K, K]."""
    windows = _window_sums(side)
    total, squares = _apply_to_both_axes(windows, details), _apply_to_both_axes(windows, details**2)
    norms: Floats = np.sqrt(np.maximum(squares - total**2 / side**2, MIN_VARIANCE * side**2))
    return norms


@functools.cache
def _window_sums(side: int) -> Floats:
    """Return the matrix [64 - side + 1, 64] that sums each window of `side` pixels."""
    first = np.arange(SIDE - side + 1)[:, None]
    return ((np.arange(SIDE) >= first) & (np.arange(SIDE) < first + side)).astype(np.float32)


@functools.cache
def running_mean(side: int, width: int) -> NDArray[np.float64]:
    """Return the matrix [side, side] of a running mean over `width` pixels, with edge values repeated."""
    indices = (np.arange(side)[:, None] + np.arange(width) - width // 2).clip(0, side - 1)
    weights: NDArray[np.float64] = (indices[:, :, None] == np.arange(side)).mean(1)
    return weights


def _resize_images(gray: Floats, side: int) -> Floats:
    """Resize images [N, H, H] to [N, side, side]."""
    return _apply_to_both_axes(_resize_matrix(side, gray.shape[1]), gray)


def _apply_to_both_axes(weights: Floats, gray: Floats) -> Floats:
    """Apply a matrix [K, H] to the rows and the columns of images [N, H, H]."""
    mapped: Floats = np.matmul(np.matmul(weights, gray), weights.T)
    return mapped


@functools.cache
def _resize_matrix(side: int, old_side: int) -> Floats:
    """Return the matrix [side, old] that resizes by antialiased linear interpolation."""
    step = old_side / side
    positions = ((np.arange(side)[:, None] + 0.5) * step - 0.5).clip(0, old_side - 1)
    weights = np.maximum(0, 1 - np.abs(positions - np.arange(old_side)) / max(step, 1.0))
    resized: Floats = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    return resized
