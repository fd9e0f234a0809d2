"""Two classes, one of which is to be detected: sensitivity, specificity, predictive values, curves and thresholds.

The positive class is the one that counts: the defect, the disease. Its score is its probability. At a threshold of 0.5
it is predicted where it is the more probable class, as everywhere else.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sightline import intervals, metrics
from sightline.errors import UsageError, plural, suggest
from sightline.evaluation import bootstrap
from sightline.records import Figure

Rate = Literal["sensitivity", "specificity"]
RATES: tuple[Rate, ...] = ("sensitivity", "specificity")
USUAL = (0.99, 0.95, 0.9)  # targets of a rate that every evaluation tries
POSITIVE = {
    "positive", "pos", "defect", "defects", "defective", "damage", "damaged", "fault", "faulty", "crack", "cracked",
    "bad", "ng", "nok", "notok", "fail", "failed", "abnormal", "anomaly", "anomalous", "disease", "diseased", "sick",
    "infected", "malignant", "cancer", "tumor", "tumour", "pneumonia", "fraud", "spam", "yes", "true", "1",
    "阳性", "不良", "不合格", "异常", "缺陷",
}  # fmt: skip
NEGATIVE = {
    "negative", "neg", "normal", "ok", "good", "pass", "passed", "healthy", "benign", "uninfected", "intact",
    "undamaged", "background", "no", "false", "0", "阴性", "良品", "合格", "正常",
}  # fmt: skip
NEGATIONS = {"no", "not", "non", "without"}
PREFIXES = ("no", "not", "non", "un", "without", "非", "无", "未", "没有")  # of the name of the other class
SUFFIXES = ("free", "negative", "neg", "absent")  # likewise


@dataclass(frozen=True, slots=True)
class Curve:
    """Points of a curve, float64 [P] each, from the strictest threshold on: the positive class at `threshold` or more.

    Of the ROC curve `x` is 1 - specificity and `y` sensitivity; of the precision-recall curve, recall and precision.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    threshold: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Rates:
    """What predicting the positive class from a `threshold` on comes to: metrics with Wilson's intervals."""

    threshold: float
    sensitivity: Figure
    specificity: Figure
    ppv: Figure
    npv: Figure


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """A threshold chosen on `count` validation images so that a `rate` reaches a `target`; None where none does.

    If `conservative`, the exact one-sided 95% bound of the rate on validation reaches the target, else the rate itself.
    `reached` is what it comes to on the evaluated images, with the `lower_bound` of the rate there; `met`: whether that
    reaches the target. These are None where the evaluated images chose the threshold.

    `relaxed` is the threshold where the rate itself, not its bound, has to reach the target; `given_up` is how much of
    the other rate being conservative costs on validation.
    """

    rate: Rate
    target: float
    threshold: float | None
    count: int
    conservative: bool | None  # None: of a threshold kept earlier, which does not say
    note: str = ""
    reached: Rates | None = None
    lower_bound: float | None = None
    met: bool | None = None
    relaxed: float | None = None
    given_up: float = 0.0


@dataclass(frozen=True, slots=True)
class Binary:
    """The evaluation of two classes as a detection of `positive`; `rule` says why that is the positive class.

    `rates` are those of the more probable class; `auroc` is that of the evaluation itself, `average_precision` that of
    the positive class, with bootstrap intervals. `operating_points` are those asked for, or else the one that the model
    keeps; `usual_points` those for the usual targets that validation images show, tried on the evaluated images.
    """

    positive: str
    negative: str
    rule: str
    positives: int
    negatives: int
    rates: Rates
    auroc: Figure
    average_precision: Figure
    roc: Curve
    precision_recall: Curve
    operating_points: tuple[OperatingPoint, ...] = ()
    usual_points: tuple[OperatingPoint, ...] = ()


def positive_class(classes: Sequence[str], wanted: str = "") -> tuple[str, str]:
    """Return the positive one of two classes, and why it is that one.

    The one `wanted`; else the one whose name says so (defect, positive, abnormal, yes, 1, crack but not no_crack); else
    the one beside a name that says the contrary (ok, normal, healthy, 0; non_fire beside fire); else the second. Never
    by the counts of images, which differ between splits. Raises `UsageError` for other than two classes and for an
    unknown class.

    >>> positive_class(("defect", "ok"))[0], positive_class(("dent", "ok"))[0], positive_class(("cat", "dog"))[0]
    ('defect', 'dent', 'dog')
    """
    check_positive(classes, wanted)
    if wanted:
        return wanted, "as asked for"
    for names, other, kind in ((POSITIVE, 0, "positive"), (NEGATIVE, 1, "negative")):
        hits = [i for i, label in enumerate(classes) if _is_named(label, names)]
        if len(hits) == 1:
            return classes[hits[0] ^ other], f"by its name: {classes[hits[0]]!r} is {kind}"
    for thing, other_name in (classes, reversed(classes)):
        if _negates(other_name, thing):
            return thing, f"by its name: {other_name!r} is its contrary"
    return classes[1], "the second class"


def _is_named(label: str, names: set[str]) -> bool:
    """Tell whether a label, or one of its words, is one of `names`; of numbers only the label as a whole counts."""
    words = set(re.findall(r"[a-z]+|[0-9]+", label.lower()))
    whole = _letters(label)
    return whole in names or (bool(words & names - {"0", "1"}) and not words & NEGATIONS)


def _negates(label: str, other: str) -> bool:
    """Tell whether a label says that what the `other` names is not there, as "No fire" beside "fire".

    A number at the end of the other name may be left out ("NonCOVID" beside "COVID19"), and a word that says that it
    is there may stand in it ("with_mask", "covid_positive").
    """
    name, whole = _letters(label), _letters(other)
    things = {whole, whole.rstrip("0123456789"), whole.removeprefix("with")} - {""}
    return any(
        name in {prefix + thing for prefix in PREFIXES} | {thing + suffix for suffix in SUFFIXES} for thing in things
    )


def _letters(label: str) -> str:
    return "".join(c for c in label.casefold() if c.isalnum())


def check_positive(classes: Sequence[str], wanted: str) -> None:
    """Raise `UsageError` where `wanted` cannot be the positive class of `classes`; an empty name asks for none."""
    if wanted and len(classes) != 2:
        raise UsageError(
            f"The positive class is to be {wanted!r}, but there are {len(classes)} classes: only two classes have a "
            "positive one."
        )
    if wanted and wanted not in classes:
        raise UsageError(f"There is no class {wanted!r} to be the positive one.{suggest(wanted, classes)}")


def evaluate(
    probabilities: NDArray[np.float32],
    labels: NDArray[np.int32],
    classes: Sequence[str],
    auroc: Figure,
    positive: str = "",
    seed: int = 0,
) -> Binary:
    """Return the evaluation of probabilities float32 [N, 2] against labels int32 [N]; `auroc` is that of `scores`."""
    chosen, rule = positive_class(classes, positive)
    k = list(classes).index(chosen)
    score, truth = probabilities[:, k].astype(np.float64), labels == k
    return Binary(
        chosen, classes[1 - k], rule, int(truth.sum()), int((~truth).sum()),
        _rates(probabilities.argmax(1) == k, truth, 0.5), auroc, _average_precision(score, truth, seed),
        *curves(score, truth),
    )  # fmt: skip


def _average_precision(score: NDArray[np.float64], truth: NDArray[np.bool_], seed: int) -> Figure:
    if not truth.any() or truth.all():
        return Figure(None, note="all images are of one class")
    value = float(metrics.ranking(score, truth, np.ones((1, len(score))))[1][0])
    number = bootstrap.resamples(len(score))
    drawn = [metrics.ranking(score, truth, w)[1] for w in bootstrap.weights(len(score), number, seed, "ranking")]
    return bootstrap.figure(value, np.concatenate(drawn) if drawn else np.zeros(0))


def rates_at(score: NDArray[np.float64], truth: NDArray[np.bool_], threshold: float) -> Rates:
    """Return what predicting the positive class where its score is at least `threshold` comes to."""
    return _rates(score >= threshold, truth, threshold)


def _rates(predicted: NDArray[np.bool_], truth: NDArray[np.bool_], threshold: float) -> Rates:
    def of(hits: NDArray[np.bool_], among: NDArray[np.bool_], nothing: str) -> Figure:
        good, count = int((hits & among).sum()), int(among.sum())
        return Figure(good / count, intervals.wilson(good, count)) if count else Figure(None, note=nothing)

    return Rates(
        threshold,
        sensitivity=of(predicted, truth, "no image of the positive class"),
        specificity=of(~predicted, ~truth, "no image of the negative class"),
        ppv=of(truth, predicted, "the positive class was never predicted"),
        npv=of(~truth, ~predicted, "the negative class was never predicted"),
    )


def curves(score: NDArray[np.float64], truth: NDArray[np.bool_]) -> tuple[Curve, Curve]:
    """Return the ROC and the precision-recall curve, a point for each different score; without points for no images."""
    order = np.argsort(-score, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1) if len(score) else np.zeros(0, np.int64)
    hits = np.cumsum(truth[order])[ends]
    alarms = ends + 1 - hits
    sensitivity = hits / max(int(truth.sum()), 1)
    at = score[order][ends]
    roc = Curve(
        np.append(0.0, alarms / max(int((~truth).sum()), 1)), np.append(0.0, sensitivity), np.append(np.inf, at)
    )  # fmt: skip
    return roc, Curve(sensitivity, hits / np.maximum(ends + 1, 1), at)


def operating_point(
    score: NDArray[np.float64], truth: NDArray[np.bool_], rate: Rate, target: float, *, conservative: bool = True
) -> OperatingPoint:
    """Choose, on validation images, the threshold that gives away least while a rate reaches its target.

    For a sensitivity that is the highest threshold, for a specificity the lowest. If `conservative`, the exact
    one-sided 95% bound of the rate must reach the target: the threshold is an order statistic of the scores of one
    class, and so a tolerance limit (Wilks, 1941, Ann. Math. Stat. 12:91-96), which falls short on new images for one
    validation split in twenty. Otherwise the rate itself must reach it.
    """
    own, other = (score[truth], score[~truth]) if rate == "sensitivity" else (score[~truth], score[truth])
    own = np.sort(own)

    def choose(*, conservative: bool) -> float | None:
        misses = _misses(len(own), target, conservative=conservative)
        if misses is None:
            return None
        return float(own[misses] if rate == "sensitivity" else np.nextafter(own[::-1][misses], np.inf))

    threshold = choose(conservative=conservative)
    relaxed = choose(conservative=False) if conservative else None
    if threshold is None:
        note = f"No threshold is shown to reach it by the {plural(len(own), 'validation image')} of that class."
        if relaxed is not None:
            note += (
                f" --no-conservative would predict the positive class where its probability is at least {relaxed:.4f}, "
                "and fall short on new images about every other time."
            )
        return OperatingPoint(rate, target, None, len(score), conservative, note, relaxed=relaxed)
    given_up = 0.0
    if relaxed is not None and len(other):
        given_up = float(((other >= min(threshold, relaxed)) & (other < max(threshold, relaxed))).mean())
    return OperatingPoint(rate, target, threshold, len(score), conservative, relaxed=relaxed, given_up=given_up)


def usual_points(
    held_out: tuple[NDArray[np.float64], NDArray[np.bool_]], evaluated: tuple[NDArray[np.float64], NDArray[np.bool_]]
) -> tuple[OperatingPoint, ...]:
    """Choose thresholds for the usual targets of both rates on validation images, and try them on the evaluated ones.

    Both are scores of the positive class float64 [N] and whether an image is of it, bool [N]. Targets that no threshold
    is shown to reach are left out.
    """
    points = [operating_point(*held_out, rate, target) for rate in RATES for target in USUAL]
    return tuple(tried(point, *evaluated) for point in points if point.threshold is not None)


def _misses(count: int, target: float, *, conservative: bool) -> int | None:
    """Return how many of `count` images may be missed, None where even none are too many."""
    if not conservative:
        return min(int(count * (1 - target) + 1e-9), count - 1) if count else None
    best = None
    for misses in range(count):
        if intervals.at_most(misses, count, 1 - target) > intervals.LEVEL:
            break
        best = misses
    return best


def tried(point: OperatingPoint, score: NDArray[np.float64], truth: NDArray[np.bool_]) -> OperatingPoint:
    """Return an operating point with what it reached on images that had no part in choosing it."""
    if point.threshold is None:
        return point
    found = rates_at(score, truth, point.threshold)
    own = truth if point.rate == "sensitivity" else ~truth
    right = (score >= point.threshold) == truth
    bound = intervals.lower_bound(int((right & own).sum()), int(own.sum())) if own.any() else None
    return replace(point, reached=found, lower_bound=bound, met=bound is not None and bound >= point.target)
