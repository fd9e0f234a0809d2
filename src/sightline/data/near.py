"""Groups of near duplicates: copies of an image that were resized, recompressed or slightly cropped.

Candidate pairs come from perceptual hashes (`hashes`), nearest first. Pairs whose 16x16 thumbnails correlate are
verified at 32x32 pixels (`alignment`). The correlation threshold there depends on the data set, because images of one
aligned subject (X-rays, digits, garments) correlate anyway: it is estimated from random pairs, most of which are
unrelated, as the level at which the tail of their correlations, extrapolated as an exponential, leaves one false pair
in a hundred such data sets. Every member of a group is similar to the group's center; a chain of images, each similar
only to the next, is not a group. `docs/doctor.md` has the measurements behind the constants.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sightline.data import alignment, hashes
from sightline.data.hashes import Pairs

SAME = 0.87  # least correlation of two thumbnails for a pair to be verified
LOOK = 0.85  # least correlation at verification, in a data set of dissimilar images
FEW = 12  # too few images to estimate how similar unrelated ones are ...
CAREFUL = 0.95  # ... so this threshold is used instead
STRICT = 0.95  # the threshold is at most this, since crops do not correlate better ...
ABOVE = 0.4  # ... unless a tenth of the unrelated pairs come within this distance of it, in Fisher's z
ALIGNED = 0.6  # if more than 1 in 30 random pairs of thumbnails exceed this, the threshold is estimated
COPY = 0.98  # a random pair above this correlation is assumed to be copies
SURE = 0.97  # thumbnail correlation that suffices in a data set of dissimilar images, after `looks` are used up
SAFETY = 100  # data sets of this size and kind per false pair
PAIRS = 400  # random pairs that are sampled ...
SAMPLE = 40  # ... from this many images
ROUNDS = 4  # images per hash with which others of the same hash are compared
BATCH = 256  # candidates per batch

Indices = NDArray[np.int64]


def budget(count: int) -> int:
    """Return how many pairs of `count` images may be compared by thumbnail."""
    return max(5000, count)


def looks(count: int) -> int:
    """Return how many pairs of `count` images may be verified, besides those that estimate the threshold."""
    return min(max(1000, count // 4), 4000)


def groups(prints: NDArray[np.uint64], small: NDArray[np.uint8]) -> Indices:
    """Return the first member of each image's group, int64 [N]; an image without near duplicates is its own.

    `small` are gray images uint8 [N, 32, 32], `prints` their hashes uint64 [N] (`hashes.perceptual`).
    """
    search = _Search(prints, small, np.arange(len(prints)), left=looks(len(prints)))
    entries = search.equal_hashes()
    left = budget(len(prints))
    for a, b in _nearest(prints[entries], 50 * left):
        settle(search.root)
        one, other = entries[a], entries[b]
        apart = np.flatnonzero(search.root[one] != search.root[other])
        left -= len(apart)
        if left < 0:
            break
        search.compare(one[apart], other[apart], share=0.5)
    settle(search.root)
    return search.around_centers()


@dataclass(slots=True)
class _Search:
    """A union-find forest, `root`, of the images found to be similar so far, with the pairs in `edges`.

    `level` is the correlation threshold of verification, 0 until estimated; `left` verifications remain.
    """

    prints: NDArray[np.uint64]
    small: NDArray[np.uint8]
    root: Indices
    left: int
    edges: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    level: float = 0.0

    def equal_hashes(self) -> Indices:
        """Unite images with equal hashes, of which there may be very many; return those that remain."""
        left = np.arange(len(self.prints))
        alone = [np.empty(0, np.int64)]
        for _ in range(ROUNDS):
            _, first, inverse = np.unique(self.prints[left], return_index=True, return_inverse=True)
            alone.append(left[first])
            others = np.flatnonzero(first[inverse] != np.arange(len(left)))
            left = self.compare(left[first[inverse[others]]], left[others], share=0.5)
        return np.sort(np.concatenate([*alone, left]))

    def compare(self, one: Indices, other: Indices, share: float) -> Indices:
        """Unite similar pairs, using up to `share` of the remaining verifications; return `other` of all other pairs.

        Pairs with the most similar thumbnails are verified first.
        """
        near = self._thumbs_correlate(one, other)
        alike = np.zeros(len(one), bool)
        order = np.argsort(-near, kind="stable")[: np.count_nonzero(near >= SAME)]
        most = math.ceil(self.left * share)
        for start in range(0, len(order), BATCH):
            some = order[start : start + BATCH]
            united = np.array([self.find(i) == self.find(j) for i, j in zip(one[some], other[some], strict=True)])
            alike[some[united]] = True
            some = some[~united]
            alike[some] = self.verified(one[some], other[some], near[some], most)
            most -= len(some)
            for i, j in zip(one[some[alike[some]]].tolist(), other[some[alike[some]]].tolist(), strict=True):
                low, high = sorted((self.find(i), self.find(j)))
                self.root[high] = low
                self.edges[i].add(j)
                self.edges[j].add(i)
        return other[~alike]

    def verified(self, one: Indices, other: Indices, near: NDArray[np.float32], most: int) -> NDArray[np.bool_]:
        """Return which pairs are similar: verify the first `most`; judge the rest by thumbnail correlation, `near`."""
        looked = slice(0, max(0, min(most, self.left)))
        one, other = one[looked], other[looked]
        if len(one):
            self.level = self.level or self._level()
            self.left -= len(one)
        alike: NDArray[np.bool_] = (near >= SURE) & (self.level == LOOK)
        alike[looked] = alignment.correlations(self.small, one, other) >= self.level
        return alike

    def _thumbs_correlate(self, one: Indices, other: Indices) -> NDArray[np.float32]:
        near = [np.empty(0, np.float32)]
        for at in range(0, len(one), BATCH):
            a, b = (hashes.halved(self.small[some[at : at + BATCH]]) for some in (one, other))
            near.append(hashes.correlation(a, b))
        return np.concatenate(near)

    def _level(self) -> float:
        """Estimate the correlation threshold of verification from pairs of unrelated images."""
        count = len(self.prints)
        if count < FEW:
            return CAREFUL
        rng = np.random.default_rng(0)
        some = rng.choice(count, min(SAMPLE, count), replace=False)
        one, other = np.triu_indices(len(some), 1)
        pairs = rng.choice(len(one), min(PAIRS, len(one)), replace=False)
        one, other = some[one[pairs]], some[other[pairs]]
        if np.quantile(self._thumbs_correlate(one, other), 29 / 30) < ALIGNED:
            return LOOK
        drawn = alignment.correlations(self.small, one, other)
        unrelated = drawn[drawn < COPY]
        if len(unrelated) < FEW:
            return CAREFUL
        z = np.arctanh(np.maximum(unrelated, 0))
        most, top = np.quantile(z, [0.9, 0.99])
        level = most + (top - most) * math.log10(0.1 * SAFETY * count * (count - 1) / 2)
        return float(np.tanh(np.clip(level, math.atanh(LOOK), max(math.atanh(STRICT), most + ABOVE))))

    def find(self, i: int) -> int:
        """Return the root of the tree of image `i`."""
        while self.root[i] != i:
            self.root[i] = self.root[self.root[i]]
            i = int(self.root[i])
        return int(i)

    def around_centers(self) -> Indices:
        """Divide the trees into groups around a center each; return the first member of each image's group."""
        leader = np.arange(len(self.root))
        sizes = Counter(self.root.tolist())
        trees: dict[int, list[int]] = defaultdict(list)
        for i in np.flatnonzero([sizes[r] > 1 for r in self.root.tolist()]).tolist():
            trees[int(self.root[i])].append(i)
        for tree in trees.values():
            rest = set(tree)
            while len(rest) > 1:
                center = max(rest, key=lambda i: (len(self.edges[i] & rest), -i))
                unknown = np.array(sorted(rest - self.edges[center] - {center}), np.int64)
                middle = np.full(len(unknown), center)
                alike = self.verified(middle, unknown, self._thumbs_correlate(middle, unknown), len(unknown))
                members = {center, *unknown[alike].tolist(), *(self.edges[center] & rest)}
                leader[sorted(members)] = min(members)
                rest -= members
        return leader


def _nearest(prints: NDArray[np.uint64], most: int) -> list[Pairs]:
    """Return candidate pairs by Hamming distance 0 ... `RADIUS`, up to the distance that exceeds `most` pairs."""
    levels: list[list[Pairs]] = [[] for _ in range(hashes.RADIUS + 1)]
    counts = np.zeros(hashes.RADIUS + 1, np.int64)
    for a, b in hashes.candidates(prints):
        distance = np.bitwise_count(prints[a] ^ prints[b])
        for d in np.unique(distance).tolist():
            if d < len(levels):
                at = distance == d
                levels[d].append((a[at], b[at]))
                counts[d] += np.count_nonzero(at)
        while counts[: len(levels)].sum() > most:
            levels.pop()
    return [(np.concatenate([a for a, _ in at]), np.concatenate([b for _, b in at])) for at in levels if at]


def settle(root: Indices) -> None:
    """Compress the paths of a forest, int64 [N], in place: every entry becomes the root of its tree."""
    while not np.array_equal(root[root], root):
        root[:] = root[root]
