"""Bootstrap of rankings and of sums of many classes: blocks of images are resampled, and scores are counted in cells.

Ranking all images of each class again for each resample would take minutes. Images, or their groups, are therefore
randomly divided into up to a thousand blocks, which are resampled with replacement like images: the variance of a mean
over such blocks equals that over images (the random groups of Wolter, 2007, Introduction to Variance Estimation,
chapter 2). A block is a histogram of its images' scores, and one matrix product computes the histograms of all
resamples. The edges of its cells are scores of images that have the class, and each of these scores is a cell of its
own, so AUROC and average precision are exact for up to `MAX_EDGES` of them. For more, cells between them have images
with the class and without it, whose order within the cell is taken to be that of all images on average; and only the
changes of the metrics are used. Ties within a cell would make intervals of nearly perfect models twice too wide.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import metrics, process
from sightline.evaluation import bootstrap
from sightline.evaluation.bootstrap import Resampling, mean_over_classes, sum_by_group
from sightline.seeding import make_generator

MAX_BLOCKS = 1000
MAX_EDGES = 500


@dataclass(frozen=True, slots=True)
class BlockBootstrap:
    """R resamples of G blocks of N images: `blocks` int64 [N] numbers them, `weights` float64 [1 + R, G] counts them.

    The first row counts each block once: the first value of each metric is that of all images.
    """

    blocks: NDArray[np.int64]
    weights: NDArray[np.float64]

    @classmethod
    def draw(cls, count: int, classes: int, resampling: Resampling, name: str) -> BlockBootstrap:
        """Return resamples of `count` images, at least one, for metrics of `classes` classes.

        A block is one image, or one group of images, if there are few enough of them, else several.
        """
        units = np.arange(count) if resampling.groups is None else resampling.groups
        size = int(units.max()) + 1
        number = min(size, MAX_BLOCKS)
        order = np.arange(size) if size == number else _divide(size, number, resampling.seed, name)
        rows = bootstrap.count_resamples(count, classes) or bootstrap.MIN_RESAMPLES
        weights = Resampling(resampling.seed).draw_weights(number, rows, name)
        return cls(order[units], np.concatenate([np.ones((1, number)), *weights]))

    def resample_sums(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the sums [1 + R, M] of the rows of `values` [N, M] in each resample."""
        resampled: NDArray[np.float64] = self.weights @ sum_by_group(values, self.blocks)
        return resampled

    def resample_bins(self, values: NDArray[np.float64], bins: NDArray[np.int64], number: int) -> NDArray[np.float64]:
        """Return the sums [1 + R, number] of the `values` [N] in each of the `bins` int64 [N] in each resample."""
        shape = self.weights.shape[1], number
        sums = np.bincount(self.blocks * number + bins, values, shape[0] * number).reshape(shape)
        resampled: NDArray[np.float64] = self.weights @ sums
        return resampled

    def rank_classes(self, scores: NDArray[np.floating[Any]], labels: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return AUROC and average precision of each class of `scores` [N, K], and their means: [K + 1, 2, 1 + R].

        NaN where they are undefined.
        """
        columns = (of.astype(np.float64) for of in scores.T)  # one at a time, so that [N, K] stays float32
        is_multiplied = len(self.blocks) > self.weights.shape[1]
        with process.one_blas_thread() if is_multiplied else nullcontext():
            each = np.stack([self._rank(of, labels[:, k], self.blocks) for k, of in enumerate(columns)])
        return np.concatenate([each, mean_over_classes(each)[None]])

    def rank_pairs(self, scores: NDArray[np.float64], labels: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return AUROC and average precision of all pairs of an image and a class, float64 [2, 1 + R]."""
        return self._rank(scores.ravel(), labels.ravel(), np.repeat(self.blocks, scores.shape[1]))

    def _rank(
        self, scores: NDArray[np.float64], positive: NDArray[np.bool_], blocks: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        if not positive.any():
            return np.full((2, len(self.weights)), np.nan)
        if len(blocks) == self.weights.shape[1]:  # each block is one image
            batches = np.array_split(self.weights[:, blocks], 1 + self.weights.size // bootstrap.CHUNK)
            return np.concatenate([metrics.auroc_and_ap(scores, positive, rows) for rows in batches], axis=1)
        values = self._rank_cells(scores, positive, blocks)
        exact = np.concatenate(metrics.auroc_and_ap(scores, positive, np.ones((1, len(scores)))))[:, None]
        return np.concatenate([exact, np.clip(exact + values[:, 1:] - values[:, :1], 0, 1)], axis=1)

    def _rank_cells(
        self, scores: NDArray[np.float64], positive: NDArray[np.bool_], blocks: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Return AUROC and average precision, [2, 1 + R], as if each cell had the order of all its images."""
        own, others = np.sort(scores[positive]), np.sort(scores[~positive])
        edges = np.unique(np.quantile(own, np.linspace(0, 1, MAX_EDGES), method="nearest"))
        shape = self.weights.shape[1], 2 * len(edges) + 1

        def find_cells(of: NDArray[np.float64]) -> NDArray[np.int64]:
            """Return cells of the highest scores first; those of an edge have odd numbers."""
            return 2 * len(edges) - np.searchsorted(edges, of) - np.searchsorted(edges, of, side="right")

        at = blocks * shape[1] + find_cells(scores)
        counts = (np.bincount(at[rows], minlength=math.prod(shape)).reshape(shape) for rows in (positive, ~positive))
        weights = self.weights.astype(np.float32)  # sums below 2 ** 24 are exact
        hits, misses = ((weights @ of.astype(np.float32)).astype(np.float64) for of in counts)
        hits_above, misses_above = np.cumsum(hits, 1) - hits, np.cumsum(misses, 1) - misses
        cells = find_cells(own)

        def find_fraction(
            ranked: NDArray[np.number[Any]], above: NDArray[np.float64], inside: NDArray[np.float64]
        ) -> NDArray[np.float64]:
            """Return the mean fraction of the images `inside` each cell that precede a hit.

            `ranked` are all images that precede each hit, those in the cells `above` among them.
            """
            preceding, pairs = np.bincount(cells, ranked, shape[1]) - hits[0] * above[0], hits[0] * inside[0]
            fraction: NDArray[np.float64] = np.divide(preceding, pairs, out=np.zeros(shape[1]), where=pairs > 0)
            return fraction

        # in a resample, the images of a cell are ranked like all of them; tied ones are one threshold, or count half
        not_below = len(others) - np.searchsorted(others, own)
        wrong = (not_below + len(others) - np.searchsorted(others, own, side="right")) / 2
        at_hit = hits_above + hits * find_fraction(len(own) - np.searchsorted(own, own), hits_above, hits)
        ranked = at_hit + misses_above + misses * find_fraction(not_below, misses_above, misses)
        wrong_pairs = (hits * (misses_above + misses * find_fraction(wrong, misses_above, misses))).sum(1)
        with np.errstate(divide="ignore", invalid="ignore"):
            area = 1 - wrong_pairs / (hits.sum(1) * misses.sum(1))
            precision = np.divide(at_hit, ranked, out=np.zeros_like(at_hit), where=ranked > 0)
            return np.stack([area, (hits * precision).sum(1) / hits.sum(1)])


def _divide(size: int, number: int, seed: int, name: str) -> NDArray[np.int64]:
    """Return the block of each of `size` units, of `number` blocks of about equal size at random."""
    return make_generator(seed, "blocks", name).permutation(size) % number
