"""Bootstrap for many images with many classes: whole blocks of images are resampled, and scores are counted in bins.

Ranking the pairs of 100,000 images and 80 classes again for each resample would take many minutes. Images are therefore
randomly divided into up to a thousand blocks, which are resampled with replacement like images: the variance of a mean
over such blocks equals that over images (the random groups of Wolter, 2007, Introduction to Variance Estimation,
chapter 2). A block is a histogram of its images' scores, and one matrix product computes the histograms of all
resamples. The edges of the bins are scores of images that have the class, so the average precision is exact for up to a
thousand such images; for more, it is approximate, but only its changes are used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline.evaluation import bootstrap
from sightline.evaluation.bootstrap import Resampling, mean_over_classes
from sightline.seeding import make_generator

MAX_BLOCKS = 1000
MAX_BINS = 1000


@dataclass(frozen=True, slots=True)
class BlockBootstrap:
    """R resamples of G blocks of N images: `blocks` int64 [N] numbers them, `weights` float64 [R, G] counts them."""

    blocks: NDArray[np.int64]
    weights: NDArray[np.float64]

    @classmethod
    def draw(cls, count: int, classes: int, resampling: Resampling, name: str) -> BlockBootstrap:
        """Return resamples of `count` images, at least one, for metrics of `classes` classes.

        A block is one group of images if there are few enough groups, else several groups, or several independent
        images.
        """
        units = np.arange(count) if resampling.groups is None else resampling.groups
        size = int(units.max()) + 1
        number = min(size, MAX_BLOCKS)
        order = make_generator(resampling.seed, "blocks", name).permutation(size) % number
        rows = bootstrap.count_resamples(number, classes) or bootstrap.MIN_RESAMPLES
        weights = np.concatenate(list(Resampling(resampling.seed).draw_weights(number, rows, name)))
        return cls(order[units].astype(np.int64), weights)

    def resample_sums(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the sums [R, M] of the rows of `values` [N, M] in each resample."""
        sums = np.zeros((self.weights.shape[1], values.shape[1]))
        np.add.at(sums, self.blocks, values)
        resampled: NDArray[np.float64] = self.weights @ sums
        return resampled

    def rank_classes(self, scores: NDArray[np.floating[Any]], labels: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return how AUROC and average precision change in each resample, float64 [K + 1, 2, R].

        There is a row for each class of `scores` [N, K], and one for their mean. NaN where the metrics are undefined.
        """
        columns = (of.astype(np.float64) for of in scores.T)  # one at a time, so that [N, K] stays float32
        each = np.stack([self._rank(of, labels[:, k], self.blocks) for k, of in enumerate(columns)])
        return _subtract_first(np.concatenate([each, mean_over_classes(each)[None]]))

    def rank_pairs(self, scores: NDArray[np.float64], labels: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return how AUROC and average precision of all pairs change in each resample, float64 [2, R]."""
        return _subtract_first(self._rank(scores.ravel(), labels.ravel(), np.repeat(self.blocks, scores.shape[1])))

    def _rank(
        self, scores: NDArray[np.float64], positive: NDArray[np.bool_], blocks: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Return AUROC and average precision of binned scores, [2, 1 + R]: of all blocks, and of each resample."""
        weights = np.concatenate([np.ones((1, self.weights.shape[1])), self.weights])
        if not positive.any():
            return np.full((2, len(weights)), np.nan)
        edges = np.unique(np.quantile(scores[positive], np.linspace(0, 1, MAX_BINS), method="nearest"))
        bins = len(edges) - np.searchsorted(edges, scores, side="right")  # the highest scores are in bin 0
        shape = weights.shape[1], len(edges) + 1
        cells = blocks * shape[1] + bins
        hits, total = (
            weights @ np.bincount(of, minlength=shape[0] * shape[1]).reshape(shape).astype(np.float64)
            for of in (cells[positive], cells)
        )
        misses, above, ranked = total - hits, np.cumsum(hits, 1), np.cumsum(total, 1)
        wrong = (hits * (np.cumsum(misses, 1) - misses / 2)).sum(1)  # ties count half
        with np.errstate(divide="ignore", invalid="ignore"):
            area = 1 - wrong / (hits.sum(1) * misses.sum(1))
            precision = np.divide(above, ranked, out=np.zeros_like(above), where=ranked > 0)
            return np.stack([area, (hits * precision).sum(1) / hits.sum(1)])


def _subtract_first(values: NDArray[np.float64]) -> NDArray[np.float64]:
    changes: NDArray[np.float64] = values[..., 1:] - values[..., :1]
    return changes
