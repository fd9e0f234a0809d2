"""Has the input drifted? A test of exchangeability that may be checked as often as you like.

If new images are like the validation images, their joint order carries no information: each new image is equally likely
to rank anywhere among all before it. Its conformal p-value is that rank, as a fraction, with ties broken
at random. Such p-values are independent and uniform in [0, 1], whatever the images are (Vovk, Gammerman and Shafer,
"Algorithmic learning in a random world", 2005).

A gambler who bets against this, starting with 1, never expects to gain. By Ville's inequality, the capital ever reaches
1 / level with a probability of at most `level`, over all future images: a conformal test martingale (Vovk,
Nouretdinov and Gammerman, "Testing exchangeability on-line", ICML 2003; Vovk et al., "Retrain or not retrain: conformal
test martingales for change-point detection", COPA 2021). Here the capital is divided among bets e * p^(e - 1) on small
small p-values, or on large ones, each of which begins at some image: 1 / (t + 1) of what is not yet bet begins before
image t. So a change after k images costs a factor of about k^2, where bets from the first image on would have lost all
by then.

There are several such martingales, each with a weight; the weights sum to 1, and the evidence is the largest product
of capital and weight. It reaches 1 / level with a probability of at most `level` (Bonferroni; the capitals must not be
added up, since the p-values of different scores depend on each other).

- One for each score of `ValidationSample`, which together have half of the weight.
- One for each window of 64 images: a classifier of the window against the bank of the sample, linear discriminant
  analysis with a ridge, scores the images after it (a classifier two-sample test: Lopez-Paz and Oquab, ICLR 2017). They
  are compared with the validation images and with images before the window, none of which the classifier has seen.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sightline.evaluation.validation_sample import SCORES, ValidationSample
from sightline.inference.nearest import normalize_rows
from sightline.seeding import make_generator

EXPONENTS = (0.1, 0.3, 0.6)
SMALLEST = 1e-12  # lower limit of p-values, so that their logarithms are finite
MAX_LOG = 700.0  # maximum exponent whose exponential is finite
WINDOW = 64  # images per window
AROUND = 8  # windows before a window to compare with, and windows after it to score
RIDGE = 0.3  # relative to the mean squared length of the centered rows


@dataclass(frozen=True, slots=True, eq=False)
class Drift:
    """The outcome of the test for T images.

    Attributes:
        level: The probability of a false alarm, over all looks.
        alarm: The number of images after which the evidence first reached 1 / level; None if it never did.
        start: The number of the image at which the drift began, roughly; None without an alarm.
        score: The score that raised the alarm, or has the most evidence: distance, uncertainty, length, or classifier.
        evidence: The largest evidence until now; at least 1 / level is an alarm.
        log_evidence: float64 [T]: the natural logarithm of the evidence after each image.
    """

    level: float
    alarm: int | None
    start: int | None
    score: str
    evidence: float
    log_evidence: NDArray[np.float64]


class _Path(NamedTuple):
    """One martingale: its score, the position of its first image and where its training began, gains and weight."""

    score: str
    position: int
    window: int
    gains: NDArray[np.float64]
    log_weight: float


def compute_p_values(
    calibration: NDArray[Any], scores: NDArray[Any], uniform: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the p-value of each of `scores` [T] among `calibration` [M], earlier scores and itself, float64 [T].

    It is small for a large score. `uniform` [T] in [0, 1] breaks ties.
    """
    pool = np.sort(calibration).tolist()
    p = np.empty(len(scores))
    for t, (score, fraction) in enumerate(zip(scores.tolist(), uniform.tolist(), strict=True)):
        low, high = bisect_left(pool, score), bisect_right(pool, score)
        greater, equal = len(pool) - high, high - low + 1
        p[t] = (greater + fraction * equal) / (len(pool) + 1)
        pool.insert(high, score)
    return p


def _compute_log_gains(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the logarithm of what each bet has gained after each p-value, if it began at the first: [T, bets]."""
    tails = np.log(np.clip(np.stack([p, 1 - p], 1), SMALLEST, 1))  # [T, 2]
    exponents = np.array(EXPONENTS)
    gains = np.log(exponents) + (exponents - 1) * tails[:, :, None]
    return np.cumsum(gains.reshape(len(p), -1), axis=0)


def _sum_capital(gains: NDArray[np.float64]) -> NDArray[np.float64]:
    count, bets = gains.shape
    t = np.arange(1, count + 1)[:, None]
    before = np.concatenate([np.zeros((1, bets)), gains[:-1]])
    begun = np.logaddexp.accumulate(-np.log(t * (t + 1.0)) - before, axis=0)  # 1 / (t (t + 1)), in total 1, begins at t
    capital = np.logaddexp.reduce(begun + gains, axis=1) - np.log(bets)
    total: NDArray[np.float64] = np.logaddexp(capital, -np.log(t[:, 0] + 1.0))
    return total


class DriftTest:
    """Tests a stream of images against a sample of validation images, a batch at a time, in bounded memory.

    The outcome for the first images does not depend on later ones, so looking again is the same test.
    """

    def __init__(self, sample: ValidationSample, level: float) -> None:
        """Use `level` as the probability of a false alarm, over all looks."""
        self._sample, self._level, self._count = sample, level, 0
        self._scores: list[NDArray[np.float64]] = []
        self._blocks: list[NDArray[np.float32]] = []  # `WINDOW` normalized rows each; the last block may be shorter
        self._first_block = self._next_window = 0
        self._paths: list[_Path] = []

    def add(self, features: NDArray[np.float32], uncertainties: NDArray[np.float64]) -> None:
        """Add the next images: features float32 [n, F] and uncertainties float64 [n]."""
        self._scores.append(self._sample.compute_scores(features, uncertainties))
        self._count += len(features)
        rows = normalize_rows(features)
        if self._blocks and len(self._blocks[-1]) < WINDOW:
            rows = np.concatenate([self._blocks.pop(), rows])
        for start in range(0, len(rows), WINDOW):
            self._blocks.append(rows[start : start + WINDOW])
            if len(self._blocks[-1]) == WINDOW and self._get_last_block() - self._next_window >= AROUND:
                self._paths.append(self._follow_window(self._next_window))
                self._next_window += 1
                surplus = max(0, self._next_window - AROUND - self._first_block)
                del self._blocks[:surplus]
                self._first_block += surplus

    def finish(self) -> Drift:
        """Return the outcome for all images until now."""
        if not self._count:
            return Drift(self._level, None, None, SCORES[0], 1.0, np.zeros(0))
        scores = np.concatenate(self._scores)
        calibration = self._sample.compute_scores(self._sample.features, self._sample.uncertainties)
        paths = [
            _Path(name, 0, 0, _bet(calibration[:, i], scores[:, i], name), -np.log(2 * len(SCORES)))
            for i, name in enumerate(SCORES)
        ]
        windows = range(self._next_window, self._get_last_block())  # at least one block follows: horizons end early
        return self._combine([*paths, *self._paths, *map(self._follow_window, windows)])

    def _get_last_block(self) -> int:
        return self._first_block + len(self._blocks) - 1

    def _follow_window(self, window: int) -> _Path:
        """Return the martingale of the images after a window."""
        at = window - self._first_block
        direction = _fit_direction(normalize_rows(self._sample.bank), self._blocks[at])
        before = self._blocks[max(0, at - AROUND) : at]
        calibration = np.concatenate([normalize_rows(self._sample.features), *before]) @ direction
        scores = np.concatenate(self._blocks[at + 1 : at + 1 + AROUND]) @ direction
        gains = _bet(calibration, scores, f"window {window}")
        weight = np.log(2) + np.log(window + 1.0) + np.log(window + 2.0)  # 1/2, 1/6, 1/12, ... of one half
        return _Path("classifier", (window + 1) * WINDOW, window * WINDOW, gains, -weight)

    def _combine(self, paths: Sequence[_Path]) -> Drift:
        evidence = np.full(self._count, -np.inf)
        leaders = np.zeros(self._count, np.int64)
        for number, path in enumerate(paths):
            values = _sum_capital(path.gains) + path.log_weight
            place = slice(path.position, path.position + len(values))
            leads = values > evidence[place]
            evidence[place][leads] = values[leads]
            leaders[place][leads] = number
        alarms = np.flatnonzero(evidence >= -np.log(self._level))
        position = int(alarms[0]) if len(alarms) else int(evidence.argmax())
        path = paths[leaders[position]]
        alarm = position + 1 if len(alarms) else None
        return Drift(
            self._level, alarm, None if alarm is None else _find_start(path, position), path.score,
            float(np.exp(min(float(evidence.max()), MAX_LOG))), evidence,
        )  # fmt: skip


def _bet(calibration: NDArray[Any], scores: NDArray[Any], name: str) -> NDArray[np.float64]:
    """Return the logarithm of the gains of each bet on the scores [T] among `calibration` [M]: [T, bets]."""
    return _compute_log_gains(
        compute_p_values(calibration, scores, make_generator(0, "drift", name).random(len(scores)))
    )


def _fit_direction(bank: NDArray[np.float32], window: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the direction float32 [F] that distinguishes the rows [n, F] of a window from those of the bank.

    It is (S + r I)^-1 (difference of the means), with the pooled covariance S; by Woodbury's identity, if there are
    fewer rows than features.
    """
    first, second = bank.mean(0, dtype=np.float64), window.mean(0, dtype=np.float64)
    rows = np.concatenate([bank - first, window - second])
    ridge = RIDGE * max(float((rows**2).sum()) / len(rows), 1e-12)
    difference = second - first
    if rows.shape[1] <= len(rows):
        return _solve_ridge(rows.T @ rows, ridge, ridge * difference)
    direction: NDArray[np.float32] = difference - rows.T @ _solve_ridge(rows @ rows.T, ridge, rows @ difference)
    return direction.astype(np.float32)


def _solve_ridge(products: NDArray[Any], ridge: float, right: NDArray[Any]) -> NDArray[np.float32]:
    solution: NDArray[np.float32] = np.linalg.solve(products + ridge * np.eye(len(products)), right).astype(np.float32)
    return solution


def _find_start(path: _Path, position: int) -> int:
    """Return the number of the image at which the most profitable of all bets began, or its window did."""
    gains = path.gains[: position + 1 - path.position]
    before = np.concatenate([np.zeros((1, gains.shape[1])), gains[:-1]])
    start = int((gains[-1] - before).max(1).argmax())
    return (path.position + start if start else path.window) + 1
