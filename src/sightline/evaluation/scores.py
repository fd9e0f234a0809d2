"""Metrics of probabilities against labels, each with its 95% interval.

Proportions (``top_1``, ``top_5``, and ``weighted_recall``, which is accuracy) have Wilson's interval, all others a
seeded percentile bootstrap. Means over classes skip classes without images; AUROC and AP are one-vs-rest.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sightline import intervals, metrics
from sightline.errors import DataError
from sightline.evaluation import bootstrap
from sightline.records import ClassFigures, Figure

AVERAGES = tuple(f"{how}_{what}" for how in ("macro", "weighted") for what in ("precision", "recall", "f1"))
RANKINGS = ("auroc", "average_precision")
ONE = "one image has no interval"
NAMES = ("log_loss", "brier", *AVERAGES, *RANKINGS)


def check(probabilities: NDArray[np.float32], paths: tuple[str, ...] = ()) -> None:
    """Raise `DataError` if the probabilities of an image are not finite, not in [0, 1] or do not sum to 1."""
    wrong = ~np.isfinite(probabilities).all(1)
    wrong |= (probabilities < -1e-5).any(1) | (np.abs(probabilities.sum(1) - 1) > 1e-2)
    if wrong.any():
        at = int(wrong.argmax())
        name = paths[at] if at < len(paths) else f"image {at}"
        raise DataError(
            f"The predicted probabilities of {int(wrong.sum())} of {len(wrong)} images are not between 0 and 1 or do "
            f"not sum to 1, first for {name}: the weights are damaged or training diverged; train the model again."
        )


def scores(probabilities: NDArray[np.float32], labels: NDArray[np.int32], seed: int = 0) -> dict[str, Figure]:
    """Return all metrics by name, of float32 [N, K] against int32 [N]; those that cannot be computed have a note."""
    count, classes = probabilities.shape
    tops = [f"top_{k}" for k in ((1, 5) if classes > 5 else (1,))]
    if not count:
        return {name: Figure(None, note="there are no images") for name in (*tops, *NAMES)}
    found = {}
    for k, name in zip((1, 5), tops, strict=False):
        hits = int(metrics.top_k(probabilities, labels, k).sum())
        found[name] = Figure(hits / count, intervals.wilson(hits, count))
    true = probabilities[np.arange(count), labels].astype(np.float64)
    columns = np.stack([metrics.negative_log(true), metrics.brier(probabilities, labels)], 1)
    drawn = bootstrap.means(columns, seed, "means")
    for name, values, means in zip(("log_loss", "brier"), columns.T, drawn.T, strict=True):
        value = float(values.mean())
        found[name] = bootstrap.figure(value, means) if count > 1 else Figure(value, note=ONE)
    return found | _averages(probabilities.argmax(1), labels, classes, seed) | _rankings(probabilities, labels, seed)


def per_class(confusion: NDArray[np.int64], classes: tuple[str, ...]) -> tuple[ClassFigures, ...]:
    """Return precision, recall, F1 and support of each class, from a confusion matrix [K, K] (rows: true)."""
    counts = zip(
        classes, *(v.tolist() for v in (np.diagonal(confusion), confusion.sum(0), confusion.sum(1))), strict=True
    )
    return tuple(_of_class(*row) for row in counts)


def _of_class(label: str, hits: int, predicted: int, support: int) -> ClassFigures:
    return ClassFigures(
        label,
        hits / predicted if predicted else None,
        hits / support if support else None,
        2 * hits / (predicted + support) if support else None,
        support,
        intervals.wilson(hits, predicted) if predicted else None,
        intervals.wilson(hits, support) if support else None,
    )


def averages(true: NDArray[np.int64], given: NDArray[np.int64], hits: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the `AVERAGES` [R, 6] from counts [R, K] of each class: images, predictions and correct predictions."""
    table = np.stack([hits / np.maximum(given, 1), hits / np.maximum(true, 1), 2 * hits / np.maximum(given + true, 1)])
    macro = (table * (true > 0)).sum(2) / np.maximum((true > 0).sum(1), 1)  # [3, R]
    weighted = (table * true).sum(2) / np.maximum(true.sum(1), 1)
    return np.concatenate([macro, weighted]).T


def _averages(answers: NDArray[np.int64], labels: NDArray[np.int32], classes: int, seed: int) -> dict[str, Figure]:
    found, counts = np.unique(labels.astype(np.int64) * classes + answers, return_counts=True)
    true, given = found // classes, found % classes

    def of(counted: NDArray[np.int64]) -> NDArray[np.float64]:  # [R, cells] -> [R, 6]
        there, answered = (_grouped(counted, by, classes) for by in (true, given))
        return averages(there, answered, _grouped(counted * (true == given), true, classes))

    values = dict(zip(AVERAGES, of(counts[None])[0].tolist(), strict=True))
    covered = {name: len(np.unique(labels)) if name.startswith("macro") else None for name in AVERAGES}
    accuracy = intervals.wilson(int((answers == labels).sum()), len(labels))
    same = {
        "weighted_recall": Figure(values["weighted_recall"], accuracy)
    }  # equals accuracy, so it has the same interval
    if len(labels) < 2:
        return {name: Figure(v, None, ONE, covered[name]) for name, v in values.items()} | same
    drawn = bootstrap.cells(counts, seed, "averages")
    redrawn = np.concatenate([of(part) for part in np.array_split(drawn, 1 + len(drawn) * classes // bootstrap.CHUNK)])
    rows = dict(zip(AVERAGES, redrawn.T, strict=True))
    return {name: bootstrap.figure(v, rows[name], covered[name]) for name, v in values.items()} | same


def _grouped(counted: NDArray[np.int64], by: NDArray[np.int64], groups: int) -> NDArray[np.int64]:
    """Sum the columns of `counted` [R, M] by their group in `by` [M]: [R, groups]."""
    order = np.argsort(by, kind="stable")
    firsts = np.flatnonzero(np.diff(by[order], prepend=-1))
    out = np.zeros((len(counted), groups), np.int64)
    out[:, by[order][firsts]] = np.add.reduceat(counted[:, order], firsts, axis=1)
    return out


def _rankings(probabilities: NDArray[np.float32], labels: NDArray[np.int32], seed: int) -> dict[str, Figure]:
    """Return macro AUROC and average precision, one-vs-rest; for two classes, AUROC is the same for both."""
    count, classes = probabilities.shape
    there = [k for k in range(classes) if 0 < (labels == k).sum() < count]
    if not there:
        return {name: Figure(None, note="all images are of one class", classes=0) for name in RANKINGS}
    one = np.ones((1, count))
    values = np.mean([_both(probabilities, labels, k, one) for k in there], axis=0)[:, 0]
    number = bootstrap.resamples(count, len(there))
    if not number:
        note = f"no interval: {len(there)} classes of {count} images would take too long"
        return {name: Figure(float(v), None, note, len(there)) for name, v in zip(RANKINGS, values, strict=True)}
    drawn = np.concatenate([
        _mean([_both(probabilities, labels, k, w) for k in there])
        for w in bootstrap.weights(count, number, seed, "ranking")
    ], axis=1)  # fmt: skip
    auroc, average = (bootstrap.figure(float(v), row, len(there)) for v, row in zip(values, drawn, strict=True))
    if classes == len(there) == 2:
        average = replace(average, note="; ".join(["mean of both classes", *filter(None, [average.note])]))
    return {"auroc": auroc, "average_precision": average}


def _both(
    probabilities: NDArray[np.float32], labels: NDArray[np.int32], k: int, w: NDArray[np.float64]
) -> NDArray[np.float64]:
    return np.array(metrics.ranking(probabilities[:, k].astype(np.float64), labels == k, w))


def _mean(found: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return the mean over the classes that are in a resample."""
    stacked = np.array(found)  # [classes, 2, R]
    good = np.isfinite(stacked)
    with np.errstate(invalid="ignore"):
        mean: NDArray[np.float64] = np.where(good, stacked, 0).sum(0) / good.sum(0)
    return mean
