"""Perceptual hashes of images, the search for pairs of similar hashes, and the correlation of thumbnails.

A hash consists of the signs of the 64 lowest frequencies of the image's discrete cosine transform (C. Zauner,
"Implementation and Benchmarking of Perceptual Image Hash Functions", 2010, there with 8x8 coefficients and a threshold
at their median). Images whose hashes differ in few bits are candidates. They are found by multi-index hashing
(M. Norouzi et al., "Fast Search in Hamming Space with Multi-Index Hashing", 2012): if two hashes differ in at most
`RADIUS` bits, at least one of four bands of 16 bits differs in at most a fourth of them (for 15 bits, in at most 3). A
candidate is verified further (`near_duplicates`) if thumbnails of both images correlate, where one of them may be
shifted and scaled as by a slight crop. `docs/doctor.md` has the measurements behind the constants.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from sightline.data.checks.cross_correlation import running_mean

SIDE = 32  # pixels of the gray image that is hashed
THUMBNAIL_SIDE = 16  # pixels of the thumbnail that is correlated
RADIUS = 15  # bits, of 64, by which hashes of the same image may differ
BANDS, BAND_BITS = 4, 16
MAX_ALL_PAIRS = 3000  # up to this many hashes, comparing all pairs is faster than bands
CANDIDATES_PER_BATCH = 1 << 21  # candidates per batch
IMAGES_PER_BATCH = 2048  # images hashed per batch: about 10 MB

Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]


def perceptual_hash(gray: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return the hashes, uint64 [N], of gray images uint8 [N, 32, 32]."""
    waves, rows, columns = _low_frequencies()
    hashes = [np.empty(0, np.uint64)]
    for start in range(0, len(gray), IMAGES_PER_BATCH):
        spectrum = waves @ gray[start : start + IMAGES_PER_BATCH].astype(np.float32) @ waves.T
        bits = spectrum[:, rows, columns] > 0  # [n, 64]
        packed = np.ascontiguousarray(np.packbits(bits, axis=1, bitorder="little"))
        hashes.append(packed.view("<u8")[:, 0].astype(np.uint64))
    return np.concatenate(hashes)


def make_thumbnails(gray: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return thumbnails uint8 [N, 16, 16] of gray images uint8 [N, 32, 32]."""
    half: NDArray[np.float64] = gray.reshape(len(gray), THUMBNAIL_SIDE, 2, THUMBNAIL_SIDE, 2).mean((2, 4))
    return (half + 0.5).astype(np.uint8)


@functools.cache
def _low_frequencies() -> tuple[NDArray[np.float32], list[int], list[int]]:
    """Return the cosines [K, 32], and the row and column of the 64 lowest frequencies apart from the mean."""
    count = 12
    waves = np.cos(np.pi * (2 * np.arange(SIDE) + 1) * np.arange(count)[:, None] / (2 * SIDE)).astype(np.float32)
    order = sorted(itertools.product(range(count), repeat=2), key=lambda at: (at[0] ** 2 + at[1] ** 2, at))[1:65]
    return waves, [row for row, _ in order], [column for _, column in order]


def find_similar_pairs(
    hashes: NDArray[np.uint64], radius: int = RADIUS, max_all_pairs: int = MAX_ALL_PAIRS
) -> Iterator[Pairs]:
    """Yield all pairs (i, j), each once, of hashes (uint64 [N]) that differ in at most `radius` bits."""
    if len(hashes) <= max_all_pairs:
        rows, columns = np.triu_indices(len(hashes), 1)
        near = np.bitwise_count(hashes[rows] ^ hashes[columns]) <= radius
        yield rows[near], columns[near]
        return
    bands = [
        ((hashes >> np.uint64(BAND_BITS * k)) & np.uint64(2**BAND_BITS - 1)).astype(np.int64) for k in range(BANDS)
    ]
    reaches = [(radius + 1 + k) // BANDS - 1 for k in range(BANDS)]  # a pair beyond each of them is beyond the radius
    for k, band in enumerate(bands):
        masks = [m for m in range(2**BAND_BITS) if m.bit_count() <= reaches[k]]
        order = np.argsort(band, kind="stable")
        sorted_band, sorted_hashes = band[order], hashes[order]
        starts = np.searchsorted(sorted_band, np.arange(2**BAND_BITS + 1))
        for mask in masks:
            for i, j in _pairs_in_buckets(sorted_band, starts, mask):
                near = np.bitwise_count(sorted_hashes[i] ^ sorted_hashes[j]) <= radius
                a, b = order[i[near]], order[j[near]]
                # only the first band that contains a pair yields it
                for earlier, reach in zip(bands[:k], reaches[:k], strict=True):
                    new = np.bitwise_count(earlier[a] ^ earlier[b]) > reach
                    a, b = a[new], b[new]
                if len(a):
                    yield np.minimum(a, b), np.maximum(a, b)


def _pairs_in_buckets(band: NDArray[np.int64], starts: NDArray[np.int64], mask: int) -> Iterator[Pairs]:
    """Yield, in chunks, the pairs of positions in the sorted `band` whose values differ by exactly `mask`."""
    places = np.arange(len(band)) if mask == 0 else np.flatnonzero(band < band ^ mask)
    begin = places + 1 if mask == 0 else starts[band[places] ^ mask]
    counts = starts[(band[places] ^ mask) + 1] - begin
    nonempty = counts > 0
    places, begin, counts = places[nonempty], begin[nonempty], counts[nonempty]
    ends = np.cumsum(counts)
    at = 0
    while at < len(places):  # at least one position per chunk, whatever its count
        done = ends[at - 1] if at else 0
        to = max(at + 1, int(np.searchsorted(ends, done + CANDIDATES_PER_BATCH, side="right")))
        number = counts[at:to]
        offset = np.arange(int(number.sum())) - np.repeat(ends[at:to] - number - done, number)
        yield np.repeat(places[at:to], number), np.repeat(begin[at:to], number) + offset
        at = to


def correlate_thumbnails(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the correlations, float32 [N] in -1..1, of thumbnails uint8 [N, 16, 16], one slightly cropped."""
    views_a, views_b = _crop_views(a), _crop_views(b)  # [N, V, 256]
    forth = np.einsum("nvd,nd->nv", views_a, views_b[:, 0]).max(1, initial=-1)
    back = np.einsum("nvd,nd->nv", views_b, views_a[:, 0]).max(1, initial=-1)
    best: NDArray[np.float32] = np.maximum(forth, back)
    return best


def _crop_views(thumbs: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return each thumbnail whole and in several crops, without coarse shading: [N, V, 256], norm 1."""
    gray = thumbs.astype(np.float32)
    views = np.concatenate(
        [_apply_windows(gray, sharp) - _apply_windows(gray, blurred) for sharp, blurred in _crop_windows()], axis=1
    )
    views -= views.mean(2, keepdims=True)
    norms = np.linalg.norm(views, axis=2, keepdims=True)
    normed: NDArray[np.float32] = views / np.maximum(norms, 1e-3)
    return normed


def _apply_windows(gray: NDArray[np.float32], windows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Apply each of K windows [K, 16, 16] to the rows and to the columns of [N, 16, 16]: [N, K * K, 256]."""
    across = gray @ windows.reshape(-1, THUMBNAIL_SIDE).T  # [N, 16, K * 16]
    both = windows.reshape(-1, THUMBNAIL_SIDE) @ across  # [N, K * 16, K * 16]
    apart = both.reshape(len(gray), len(windows), THUMBNAIL_SIDE, len(windows), THUMBNAIL_SIDE).swapaxes(2, 3)
    return apart.reshape(len(gray), len(windows) ** 2, THUMBNAIL_SIDE**2)


@functools.cache
def _crop_windows() -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Return, for each scale, the windows along a side, float32 [K, 16, 16], and the same followed by a blur."""
    scales = []
    for scale, offsets in ((1.0, (0.0,)), (0.95, (0.0, 0.5, 1.0)), (0.9, (0.0, 0.5, 1.0))):
        windows = np.stack([_crop_matrix(scale, offset) for offset in offsets])
        scales.append((windows.astype(np.float32), (running_mean(THUMBNAIL_SIDE, 5) @ windows).astype(np.float32)))
    return scales


def _crop_matrix(scale: float, offset: float) -> NDArray[np.float64]:
    """Return the matrix [16, 16] that crops `scale` of a side at a relative `offset` (0..1), by interpolation."""
    centers = offset * THUMBNAIL_SIDE * (1 - scale) + (np.arange(THUMBNAIL_SIDE) + 0.5) * scale - 0.5
    weights: NDArray[np.float64] = np.maximum(
        0, 1 - np.abs(centers.clip(0, THUMBNAIL_SIDE - 1)[:, None] - np.arange(THUMBNAIL_SIDE))
    )
    return weights
