"""Groups of near duplicates: copies of an image that were resized, recompressed or slightly cropped.

Candidate pairs come from perceptual hashes (`perceptual_hash`), nearest first. Pairs whose 16x16 thumbnails correlate
are verified at 32x32 pixels (`cross_correlation`). The correlation threshold there depends on the data set, because
images of one aligned subject (X-rays, digits, garments) correlate anyway: it is estimated from random pairs, most of
which are unrelated, as the level at which the tail of their correlations, extrapolated as an exponential, leaves one
false pair in a hundred such data sets. Every member of a group is similar to the group's center; a chain of images,
each similar only to the next, is not a group. `docs/doctor.md` has the measurements behind the constants.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sightline.data.checks import cross_correlation, perceptual_hash
from sightline.data.checks.perceptual_hash import Pairs

MIN_THUMBNAIL_CORRELATION = 0.87  # least correlation of two thumbnails for a pair to be verified
MIN_CORRELATION = 0.85  # least correlation at verification, in a data set of dissimilar images
MIN_IMAGES = 12  # too few images to estimate how similar unrelated ones are ...
FALLBACK_CORRELATION = 0.95  # ... so this threshold is used instead
MAX_CORRELATION = 0.95  # the threshold is at most this, since crops do not correlate better ...
MIN_MARGIN = 0.4  # ... unless a tenth of the unrelated pairs come within this distance of it, in Fisher's z
ALIGNED_CORRELATION = 0.6  # if more than 1 in 30 random pairs of thumbnails exceed this, the threshold is estimated
COPY_CORRELATION = 0.98  # a random pair above this correlation is assumed to be copies
# thumbnail correlation that suffices in a data set of dissimilar images, after `verification_budget` are used up
SURE_THUMBNAIL_CORRELATION = 0.97
DATASETS_PER_FALSE_PAIR = 100  # data sets of this size and kind per false pair
SAMPLED_PAIRS = 400  # random pairs that are sampled ...
SAMPLED_IMAGES = 40  # ... from this many images
ROUNDS = 4  # representatives per hash that other images of the same hash are compared with
BATCH = 256  # candidates per batch

Indices = NDArray[np.int64]


def comparison_budget(count: int) -> int:
    """Return how many pairs of `count` images may be compared by thumbnail."""
    return max(5000, count)


def verification_budget(count: int) -> int:
    """Return how many pairs of `count` images may be verified, besides those that estimate the threshold."""
    return min(max(1000, count // 4), 4000)


def group_near_duplicates(image_hashes: NDArray[np.uint64], small: NDArray[np.uint8]) -> Indices:
    """Return the first member of each image's group, int64 [N]; an image without near duplicates is its own.

    `small` are gray images uint8 [N, 32, 32], `image_hashes` their hashes uint64 [N] (`perceptual_hash`).
    """
    search = _NearDuplicateSearch(
        image_hashes, small, np.arange(len(image_hashes)), remaining=verification_budget(len(image_hashes))
    )
    representatives = search.unite_equal_hashes()
    remaining = comparison_budget(len(image_hashes))
    for a, b in _nearest_candidates(image_hashes[representatives], 50 * remaining):
        compress_paths(search.root)
        first, second = representatives[a], representatives[b]
        separate = np.flatnonzero(search.root[first] != search.root[second])
        remaining -= len(separate)
        if remaining < 0:
            break
        search.compare(first[separate], second[separate], fraction=0.5)
    compress_paths(search.root)
    return search.group_around_centers()


@dataclass(slots=True)
class _NearDuplicateSearch:
    """A union-find forest, `root`, of the images found to be similar so far, with the pairs in `edges`.

    `threshold` is the correlation threshold of verification, 0 until estimated; `remaining` verifications remain.
    """

    image_hashes: NDArray[np.uint64]
    small: NDArray[np.uint8]
    root: Indices
    remaining: int
    edges: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    threshold: float = 0.0

    def unite_equal_hashes(self) -> Indices:
        """Unite images with equal hashes, of which there may be very many; return those that remain."""
        remaining = np.arange(len(self.image_hashes))
        representatives = [np.empty(0, np.int64)]
        for _ in range(ROUNDS):
            _, first, inverse = np.unique(self.image_hashes[remaining], return_index=True, return_inverse=True)
            representatives.append(remaining[first])
            others = np.flatnonzero(first[inverse] != np.arange(len(remaining)))
            remaining = self.compare(remaining[first[inverse[others]]], remaining[others], fraction=0.5)
        return np.sort(np.concatenate([*representatives, remaining]))

    def compare(self, first: Indices, second: Indices, fraction: float) -> Indices:
        """Unite similar pairs, using up to `fraction` of the remaining verifications.

        Return `second` of all other pairs.

        Pairs with the most similar thumbnails are verified first.
        """
        correlations = self._correlate_thumbnails(first, second)
        similar = np.zeros(len(first), bool)
        order = np.argsort(-correlations, kind="stable")[: np.count_nonzero(correlations >= MIN_THUMBNAIL_CORRELATION)]
        max_verifications = math.ceil(self.remaining * fraction)
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            united = np.array(
                [self.find_root(i) == self.find_root(j) for i, j in zip(first[batch], second[batch], strict=True)]
            )
            similar[batch[united]] = True
            batch = batch[~united]
            similar[batch] = self.verify(first[batch], second[batch], correlations[batch], max_verifications)
            max_verifications -= len(batch)
            for i, j in zip(first[batch[similar[batch]]].tolist(), second[batch[similar[batch]]].tolist(), strict=True):
                low, high = sorted((self.find_root(i), self.find_root(j)))
                self.root[high] = low
                self.edges[i].add(j)
                self.edges[j].add(i)
        return second[~similar]

    def verify(
        self, first: Indices, second: Indices, correlations: NDArray[np.float32], max_verifications: int
    ) -> NDArray[np.bool_]:
        """Return which pairs are similar: the first `max_verifications` are verified at 32x32 pixels.

        The thumbnail correlations, `correlations`, decide on the rest.
        """
        verified = slice(0, max(0, min(max_verifications, self.remaining)))
        first, second = first[verified], second[verified]
        if len(first):
            self.threshold = self.threshold or self._estimate_threshold()
            self.remaining -= len(first)
        similar: NDArray[np.bool_] = (correlations >= SURE_THUMBNAIL_CORRELATION) & (self.threshold == MIN_CORRELATION)
        similar[verified] = cross_correlation.correlate_pairs(self.small, first, second) >= self.threshold
        return similar

    def _correlate_thumbnails(self, first: Indices, second: Indices) -> NDArray[np.float32]:
        correlations = [np.empty(0, np.float32)]
        for at in range(0, len(first), BATCH):
            a, b = (
                perceptual_hash.make_thumbnails(self.small[indices[at : at + BATCH]]) for indices in (first, second)
            )
            correlations.append(perceptual_hash.correlate_thumbnails(a, b))
        return np.concatenate(correlations)

    def _estimate_threshold(self) -> float:
        """Estimate the correlation threshold of verification from pairs of unrelated images."""
        count = len(self.image_hashes)
        if count < MIN_IMAGES:
            return FALLBACK_CORRELATION
        rng = np.random.default_rng(0)
        sample = rng.choice(count, min(SAMPLED_IMAGES, count), replace=False)
        first, second = np.triu_indices(len(sample), 1)
        pairs = rng.choice(len(first), min(SAMPLED_PAIRS, len(first)), replace=False)
        first, second = sample[first[pairs]], sample[second[pairs]]
        if np.quantile(self._correlate_thumbnails(first, second), 29 / 30) < ALIGNED_CORRELATION:
            return MIN_CORRELATION
        correlations = cross_correlation.correlate_pairs(self.small, first, second)
        unrelated = correlations[correlations < COPY_CORRELATION]
        if len(unrelated) < MIN_IMAGES:
            return FALLBACK_CORRELATION
        z = np.arctanh(np.maximum(unrelated, 0))
        most, top = np.quantile(z, [0.9, 0.99])
        threshold = most + (top - most) * math.log10(0.1 * DATASETS_PER_FALSE_PAIR * count * (count - 1) / 2)
        return float(
            np.tanh(
                np.clip(threshold, math.atanh(MIN_CORRELATION), max(math.atanh(MAX_CORRELATION), most + MIN_MARGIN))
            )
        )

    def find_root(self, i: int) -> int:
        """Return the root of the tree of image `i`."""
        while self.root[i] != i:
            self.root[i] = self.root[self.root[i]]
            i = int(self.root[i])
        return int(i)

    def group_around_centers(self) -> Indices:
        """Divide the trees into groups around a center each; return the first member of each image's group."""
        leader = np.arange(len(self.root))
        sizes = Counter(self.root.tolist())
        trees: dict[int, list[int]] = defaultdict(list)
        for i in np.flatnonzero([sizes[r] > 1 for r in self.root.tolist()]).tolist():
            trees[int(self.root[i])].append(i)
        for tree in trees.values():
            remaining = set(tree)
            while len(remaining) > 1:
                center = max(remaining, key=lambda i: (len(self.edges[i] & remaining), -i))
                unverified = np.array(sorted(remaining - self.edges[center] - {center}), np.int64)
                distances = np.bitwise_count(self.image_hashes[unverified] ^ self.image_hashes[center])
                unverified = unverified[distances <= perceptual_hash.RADIUS]  # in a film, not every pair of frames
                centers = np.full(len(unverified), center)
                similar = self.verify(
                    centers, unverified, self._correlate_thumbnails(centers, unverified), len(unverified)
                )
                members = {center, *unverified[similar].tolist(), *(self.edges[center] & remaining)}
                leader[sorted(members)] = min(members)
                remaining -= members
        return leader


def _nearest_candidates(image_hashes: NDArray[np.uint64], max_pairs: int) -> list[Pairs]:
    """Return candidate pairs by Hamming distance 0 ... `RADIUS`, up to the distance that exceeds `max_pairs` pairs."""
    levels: list[list[Pairs]] = [[] for _ in range(perceptual_hash.RADIUS + 1)]
    counts = np.zeros(perceptual_hash.RADIUS + 1, np.int64)
    for a, b in perceptual_hash.find_similar_pairs(image_hashes):
        distance = np.bitwise_count(image_hashes[a] ^ image_hashes[b])
        for d in np.unique(distance).tolist():
            if d < len(levels):
                at = distance == d
                levels[d].append((a[at], b[at]))
                counts[d] += np.count_nonzero(at)
        while counts[: len(levels)].sum() > max_pairs:
            levels.pop()
    return [(np.concatenate([a for a, _ in at]), np.concatenate([b for _, b in at])) for at in levels if at]


def compress_paths(root: Indices) -> None:
    """Compress the paths of a forest, int64 [N], in place: every entry becomes the root of its tree."""
    while not np.array_equal(root[root], root):
        root[:] = root[root]
