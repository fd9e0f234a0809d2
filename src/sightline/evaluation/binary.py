"""Binary classification: sensitivity, specificity, predictive values, ROC and precision-recall curves, thresholds.

The positive class is the one to be detected, e.g. the defect or the disease. Its score is its predicted probability; a
threshold of 0.5 is the same as predicting the more probable class.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import repeat, takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import intervals, jsonio
from sightline.errors import UsageError, plural, suggest
from sightline.evaluation import bootstrap, selective
from sightline.evaluation.block_bootstrap import BlockBootstrap
from sightline.evaluation.bootstrap import EACH_IMAGE, Resampling
from sightline.evaluation.results import Metric
from sightline.inference.results import Rate

RATES: tuple[Rate, ...] = ("sensitivity", "specificity")
TARGETS = (0.99, 0.95, 0.9)  # targets of a rate that every evaluation tries
JSON_POINTS = 501  # maximum points of a curve in JSON
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
PREFIXES = ("no", "not", "non", "un", "without", "非", "无", "未", "没有")  # before the name of the positive class
SUFFIXES = ("free", "negative", "neg", "absent")  # after the name of the positive class


@dataclass(frozen=True, slots=True)
class BinaryCurve:
    """Points of a curve, float64 [P] each, starting from the strictest `threshold`.

    For the ROC curve, `x` is 1 - specificity and `y` is sensitivity; for precision-recall, `x` is recall and `y` is
    precision. The positive class is predicted at a score of `threshold` or more.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    threshold: NDArray[np.float64]

    def to_dict(self, x: str, y: str) -> dict[str, Any]:
        """Return at most `JSON_POINTS` points, including both ends, with the coordinates named `x` and `y`.

        A threshold above all scores is None.
        """
        at = np.unique(np.linspace(0, len(self.x) - 1, JSON_POINTS).astype(int)) if len(self.x) else np.zeros(0, int)
        thresholds = [t if np.isfinite(t) else None for t in self.threshold[at].tolist()]
        return {x: self.x[at].tolist(), y: self.y[at].tolist(), "threshold": thresholds}


@dataclass(frozen=True, slots=True)
class BinaryRates:
    """The metrics of predicting the positive class at a score of `threshold` or more.

    Their intervals are Wilson's, or those of `grouped_proportions` if images come in groups.
    """

    threshold: float
    sensitivity: Metric
    specificity: Metric
    ppv: Metric
    npv: Metric


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """A `threshold` chosen on `count` validation images so that a `rate` reaches a `target`; None if none does.

    If `conservative`, the exact one-sided 95% bound of the rate on validation reaches the target, else the rate itself.
    `rates` are the metrics on the evaluated images, `lower_bound` is the bound of the rate there, and `met` says
    whether it reaches the target. These are None if the threshold was chosen on the evaluated images.

    `relaxed_threshold` is the threshold for which the rate itself, not its bound, has to reach the target; `rate_cost`
    is the loss in the other rate on validation from being conservative.
    """

    rate: Rate
    target: float
    threshold: float | None
    count: int
    conservative: bool | None  # None for a threshold of an earlier evaluation, which does not record it
    note: str = ""
    rates: BinaryRates | None = None
    lower_bound: float | None = None
    met: bool | None = None
    relaxed_threshold: float | None = None
    rate_cost: float = 0.0


@dataclass(frozen=True, slots=True)
class BinaryReport:
    """The binary metrics of a two-class evaluation; `rule` states why `positive` is the positive class.

    `rates` are the metrics of predicting the more probable class. `auroc` is taken from the evaluation itself,
    `average_precision` is that of the positive class; both have bootstrap intervals. `operating_points` are the
    requested ones, or else the saved one of the model; `usual_points` are those for the usual targets that are reached
    on validation, evaluated on the evaluated images.
    """

    positive: str
    negative: str
    rule: str
    positives: int
    negatives: int
    rates: BinaryRates
    auroc: Metric
    average_precision: Metric
    roc: BinaryCurve
    precision_recall: BinaryCurve
    operating_points: tuple[OperatingPoint, ...] = ()
    usual_points: tuple[OperatingPoint, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values, those of `rates` at the same level."""
        curves = {
            "roc": self.roc.to_dict("false_positive_rate", "sensitivity"),
            "precision_recall": self.precision_recall.to_dict("recall", "precision"),
        }
        fields = jsonio.fields_to_dict(self, skip=["rates", *curves])
        return fields | jsonio.fields_to_dict(self.rates) | curves


def choose_positive_class(classes: Sequence[str], requested: str = "") -> tuple[str, str]:
    """Return the positive class of two, and the reason for the choice.

    It is `requested` if given; else the class with a positive name (defect, abnormal, yes, 1, crack but not no_crack);
    else the class whose counterpart has a negative name (ok, healthy, 0; non_fire beside fire); else the second.
    Counts of images play no role, as they differ between splits. Raises `UsageError` unless there are two classes, and
    for an unknown class.

    >>> (
    ...     choose_positive_class(("defect", "ok"))[0],
    ...     choose_positive_class(("dent", "ok"))[0],
    ...     choose_positive_class(("cat", "dog"))[0],
    ... )
    ('defect', 'dent', 'dog')
    """
    check_positive_class(classes, requested)
    if requested:
        return requested, "as requested"
    for names, other, kind in ((POSITIVE, 0, "positive"), (NEGATIVE, 1, "negative")):
        hits = [i for i, label in enumerate(classes) if _is_named(label, names)]
        if len(hits) == 1:
            return classes[hits[0] ^ other], f"by its name: {classes[hits[0]]!r} is {kind}"
    for thing, other_name in (classes, reversed(classes)):
        if _is_negation(other_name, thing):
            return thing, f"by its name: {other_name!r} is its opposite"
    return classes[1], "the second class"


def _is_named(label: str, names: set[str]) -> bool:
    """Return whether a label, or one of its words, is one of `names`; numbers count only as a whole label."""
    words = set(re.findall(r"[a-z]+|[0-9]+", label.lower()))
    whole = _normalize_label(label)
    return whole in names or (bool(words & names - {"0", "1"}) and not words & NEGATIONS)


def _is_negation(label: str, other: str) -> bool:
    """Return whether a label negates the `other`, as "No fire" negates "fire".

    It may omit a number at the end of the other name ("NonCOVID" beside "COVID19") and a word for presence in it
    ("with_mask", "covid_positive").
    """
    name, whole = _normalize_label(label), _normalize_label(other)
    things = {whole, whole.rstrip("0123456789"), whole.removeprefix("with")} - {""}
    return any(
        name in {prefix + thing for prefix in PREFIXES} | {thing + suffix for suffix in SUFFIXES} for thing in things
    )


def _normalize_label(label: str) -> str:
    return "".join(c for c in label.casefold() if c.isalnum())


def check_positive_class(classes: Sequence[str], requested: str) -> None:
    """Raise `UsageError` if `requested` cannot be the positive class of `classes`; an empty name is always accepted."""
    if requested and len(classes) != 2:
        raise UsageError(
            f"A positive class ({requested!r}) needs exactly two classes; there are {len(classes)} classes."
        )
    if requested and requested not in classes:
        raise UsageError(f"The positive class {requested!r} is not a class of the model.{suggest(requested, classes)}")


def evaluate_binary(
    probabilities: NDArray[np.float32],
    labels: NDArray[np.int32],
    classes: Sequence[str],
    auroc: Metric,
    positive: str = "",
    resampling: Resampling = EACH_IMAGE,
) -> BinaryReport:
    """Return the binary metrics of probabilities float32 [N, 2] and labels int32 [N]; `auroc` is from `scoring`."""
    label, rule = choose_positive_class(classes, positive)
    k = list(classes).index(label)
    score, truth = probabilities[:, k].astype(np.float64), labels == k
    return BinaryReport(
        label, classes[1 - k], rule, int(truth.sum()), int((~truth).sum()),
        _compute_rates(probabilities.argmax(1) == k, truth, 0.5, resampling), auroc,
        _compute_average_precision(score, truth, resampling),
        *compute_curves(score, truth),
    )  # fmt: skip


def _compute_average_precision(score: NDArray[np.float64], truth: NDArray[np.bool_], resampling: Resampling) -> Metric:
    if not truth.any() or truth.all():
        return Metric(None, note="all images are of one class")
    blocks = BlockBootstrap.draw(len(score), 1, resampling, "ranking")
    values = blocks.rank_classes(score[:, None], truth[:, None])[0, 1]
    return resampling.make_metric(float(values[0]), values[1:], len(score), having=bootstrap.choose_rarer(truth))


def compute_rates_at(
    score: NDArray[np.float64], truth: NDArray[np.bool_], threshold: float, resampling: Resampling = EACH_IMAGE
) -> BinaryRates:
    """Return the metrics of predicting the positive class at a score of `threshold` or more.

    `score` is float64 [N]; `truth` bool [N] marks the images of that class.
    """
    return _compute_rates(score >= threshold, truth, threshold, resampling)


def _compute_rates(
    predicted: NDArray[np.bool_], truth: NDArray[np.bool_], threshold: float, resampling: Resampling = EACH_IMAGE
) -> BinaryRates:
    def proportion(hits: NDArray[np.bool_], among: NDArray[np.bool_], nothing: str) -> Metric:
        good, count = int((hits & among).sum()), int(among.sum())
        if not count:
            return Metric(None, note=nothing)
        (interval,) = resampling.estimate_proportions(hits[:, None], among[:, None])
        return Metric(good / count, interval, "" if interval else bootstrap.ONE_GROUP_NOTE)

    return BinaryRates(
        threshold,
        sensitivity=proportion(predicted, truth, "no image of the positive class"),
        specificity=proportion(~predicted, ~truth, "no image of the negative class"),
        ppv=proportion(truth, predicted, "the positive class was never predicted"),
        npv=proportion(~truth, ~predicted, "the negative class was never predicted"),
    )


def compute_curves(score: NDArray[np.float64], truth: NDArray[np.bool_]) -> tuple[BinaryCurve, BinaryCurve]:
    """Return the ROC and the precision-recall curve of scores [N], with one point for each distinct score."""
    order = np.argsort(-score, kind="stable")
    ends = selective.find_group_ends(score[order])
    hits = np.cumsum(truth[order])[ends]
    alarms = ends + 1 - hits
    sensitivity = hits / max(int(truth.sum()), 1)
    at = score[order][ends]
    roc = BinaryCurve(
        np.append(0.0, alarms / max(int((~truth).sum()), 1)), np.append(0.0, sensitivity), np.append(np.inf, at)
    )  # fmt: skip
    return roc, BinaryCurve(sensitivity, hits / np.maximum(ends + 1, 1), at)


def choose_operating_point(
    score: NDArray[np.float64],
    truth: NDArray[np.bool_],
    rate: Rate,
    target: float,
    *,
    conservative: bool = True,
    groups: NDArray[np.int64] | None = None,
) -> OperatingPoint:
    """Choose, on validation images, the threshold that costs least in the other rate while `rate` reaches its target.

    For sensitivity it is the highest threshold, for specificity the lowest. If `conservative`, the exact one-sided 95%
    bound of the rate must reach the target: the threshold is an order statistic of the scores of one class, and so a
    tolerance limit (Wilks, 1941, Ann. Math. Stat. 12:91-96), which misses the target on new images for one validation
    split in twenty. Otherwise the rate itself must reach it. Images of `groups`, int64 [N], are treated as independent;
    the note of the threshold states this.
    """
    class_scores, other_scores = (
        (score[truth], score[~truth]) if rate == "sensitivity" else (score[~truth], score[truth])
    )
    class_scores = np.sort(class_scores)

    def choose(*, conservative: bool) -> float | None:
        misses = _allowed_misses(len(class_scores), target, conservative=conservative)
        if misses is None:
            return None
        return float(
            class_scores[misses] if rate == "sensitivity" else np.nextafter(class_scores[::-1][misses], np.inf)
        )

    threshold = choose(conservative=conservative)
    relaxed = choose(conservative=False) if conservative else None
    if threshold is None:
        note = (
            f"{plural(len(class_scores), 'validation image')} of that class cannot show that a "
            "threshold reaches the target."
            if len(class_scores)
            else "There is no validation image of that class to choose a threshold on."
        )
        if relaxed is not None:
            note += (
                f" --no-conservative would use a threshold of {relaxed:.4f}, which misses the target on new images "
                "about half of the time."
            )
        return OperatingPoint(rate, target, None, len(score), conservative, note, relaxed_threshold=relaxed)
    rate_cost = 0.0
    if relaxed is not None and len(other_scores):
        rate_cost = float(((other_scores >= min(threshold, relaxed)) & (other_scores < max(threshold, relaxed))).mean())
    num_groups = bootstrap.count_groups(groups)
    note = "" if num_groups is None else selective.explain_groups(len(score), num_groups)
    return OperatingPoint(
        rate, target, threshold, len(score), conservative, note, relaxed_threshold=relaxed, rate_cost=rate_cost
    )


def choose_usual_points(
    held_out: tuple[NDArray[np.float64], NDArray[np.bool_]],
    evaluated: tuple[NDArray[np.float64], NDArray[np.bool_]],
    resampling: Resampling = EACH_IMAGE,
    groups: NDArray[np.int64] | None = None,
) -> tuple[OperatingPoint, ...]:
    """Choose thresholds for the usual targets of both rates on validation, and evaluate them.

    `held_out` and `evaluated` are each the scores of the positive class, float64 [N], and whether an image is positive,
    bool [N]; `resampling` applies to `evaluated`, and `groups`, int64 [N], to `held_out`. Targets that are not reached
    are left out.
    """
    points = [choose_operating_point(*held_out, rate, target, groups=groups) for rate in RATES for target in TARGETS]
    return tuple(
        evaluate_operating_point(point, *evaluated, resampling) for point in points if point.threshold is not None
    )


def _allowed_misses(count: int, target: float, *, conservative: bool) -> int | None:
    """Return how many of `count` images may be misclassified; None if even none is not enough for the target."""
    if not conservative:
        return min(int(count * (1 - target) + 1e-9), count - 1) if count else None
    p_values = intervals.iterate_binomial_cdf(range(count), repeat(count, count), 1 - target)
    allowed = sum(1 for _ in takewhile(lambda p_value: p_value <= intervals.ALPHA, p_values))
    return allowed - 1 if allowed else None


def evaluate_operating_point(
    point: OperatingPoint, score: NDArray[np.float64], truth: NDArray[np.bool_], resampling: Resampling = EACH_IMAGE
) -> OperatingPoint:
    """Return an operating point with its metrics on images that were not used to choose it."""
    if point.threshold is None:
        return point
    rates = compute_rates_at(score, truth, point.threshold, resampling)
    in_class = truth if point.rate == "sensitivity" else ~truth
    right = (score >= point.threshold) == truth
    bound = resampling.bound_proportion(right, in_class)
    return replace(point, rates=rates, lower_bound=bound, met=bound is not None and bound >= point.target)
