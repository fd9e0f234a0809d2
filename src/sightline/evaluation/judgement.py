"""A full evaluation report: calibration, selective prediction, prediction sets, OOD detection, from model outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sightline import metrics
from sightline.data.loader import batches
from sightline.errors import DataError, UsageError, plural
from sightline.evaluation import abstain, binary, calibration, conformal, ood, shift
from sightline.evaluation.abstain import Curve, Selective, Threshold
from sightline.evaluation.binary import Binary, Rate
from sightline.evaluation.calibration import Bin, Temperature
from sightline.evaluation.conformal import Coverage
from sightline.evaluation.mistakes import Mistakes
from sightline.evaluation.ood import Strangers
from sightline.evaluation.shift import Shift
from sightline.evaluation.slices import Slice
from sightline.prediction.base import Outputs, Predictor, filled
from sightline.prediction.decide import decide, energy, labels
from sightline.records import Evaluation, Interval, Progress, Samples, Thresholds, no_progress

SAME = 0.005  # temperatures this close to 1 print as 1.00 and change no displayed probability


@dataclass(frozen=True, slots=True)
class Said:
    """The `outputs` of a model for N labeled images, and their `labels`, int32 [N]."""

    outputs: Outputs
    labels: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Wanted:
    """The targets of thresholds; see `abstain.threshold_for`, `conformal.fit` and `binary.operating_point`.

    `positive` is the positive class of two; "" chooses it by name, see `binary.positive_class`.
    """

    target_precision: float | None = None
    coverage: float | None = None
    conservative: bool = True
    positive: str = ""
    sensitivity: float | None = None
    specificity: float | None = None

    def __bool__(self) -> bool:
        """Whether thresholds are to be saved with the model."""
        return self.target_precision is not None or self.coverage is not None or self.kept_rate is not None

    @property
    def kept_rate(self) -> Rate | None:
        """The rate whose threshold is to be saved and used for predictions: the only requested target, or None."""
        if self.target_precision is not None or self.coverage is not None or len(self.rates) != 1:
            return None
        return next(iter(self.rates))

    @property
    def rates(self) -> dict[Rate, float]:
        """The requested targets of binary classification, by rate."""
        targets: dict[Rate, float | None] = {"sensitivity": self.sensitivity, "specificity": self.specificity}
        return {rate: target for rate, target in targets.items() if target is not None}


@dataclass(frozen=True, slots=True)
class Calibration:
    """ECE and reliability of the evaluated images, as served and after the temperature fitted on validation images."""

    ece: float
    bins: tuple[Bin, ...]
    temperature: Temperature | None
    ece_after: float | None
    bins_after: tuple[Bin, ...]
    note: str

    @property
    def unchanged(self) -> bool:
        """Whether the temperature is 1 to two decimals: the model already divides by it, or need not."""
        return self.temperature is not None and abs(self.temperature.value - 1) < SAME


@dataclass(frozen=True, slots=True)
class Answered:
    """The decisions of `thresholds` on the evaluated images: the fraction of each kind, and the precision.

    `lower_bound` is the exact one-sided 95% bound of the precision, `met` whether it reaches the `target` precision;
    None if there is no target, or if the thresholds were fitted on these images.
    """

    classes: float
    sets: float
    abstained: float
    precision: float | None
    interval: Interval | None
    count: int
    target: float | None = None
    lower_bound: float | None = None
    met: bool | None = None


@dataclass(frozen=True, slots=True)
class Judgement:
    """The evaluation of split `part` with all analyses; None for those not requested or not possible."""

    evaluation: Evaluation
    part: str
    calibration: Calibration
    curve: Curve
    mistakes: Mistakes
    slices: tuple[Slice, ...]
    thresholds: Thresholds | None = None
    threshold: Threshold | None = None
    selective: Selective | None = None
    answered: Answered | None = None
    coverage: Coverage | None = None
    strangers: Strangers | None = None
    binary: Binary | None = None
    shift: Shift | None = None


def listen(predictor: Predictor, samples: Samples, progress: Progress = no_progress, task: str = "evaluating") -> Said:
    """Return the outputs of `predictor` for all `samples`; raises `DataError` if there are none."""
    size, done = min(32, len(samples)), 0
    found: list[tuple[NDArray[np.float32], ...]] = []

    def packed(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        said = predictor.outputs(pixels)
        return np.concatenate([said.probabilities, said.logits, said.features], 1)

    for batch in batches(samples, size):
        rows = filled(packed, batch.pixels, size)
        found.append(tuple(np.split(rows, [len(predictor.classes), 2 * len(predictor.classes)], 1)))
        done += len(batch.labels)
        progress(task, done, len(samples))
    if not found:
        raise DataError("There are no images to evaluate the model on.")
    return Said(Outputs(*(np.concatenate(part) for part in zip(*found, strict=True))), samples.labels)


def calibrate(judged: Said, held_out: Said | None) -> Calibration:
    """Evaluate the calibration as served, and after temperature scaling fitted on `held_out`."""
    p, labels = judged.outputs.probabilities, judged.labels
    before = calibration.ece(p, labels), calibration.reliability(p, labels)
    if held_out is None:
        note = "There are no validation images to fit a temperature on."
        return Calibration(*before, None, None, (), note)
    fitted = calibration.fit_temperature(held_out.outputs.logits, held_out.labels)
    cooled = metrics.softmax(judged.outputs.logits / np.float32(fitted.value))
    note = fitted.note
    if len(labels) < calibration.ENOUGH:
        note = note or f"The ECE of {plural(len(labels), 'image')} is mostly noise: it needs {calibration.ENOUGH}."
    after = calibration.ece(cooled, labels), calibration.reliability(cooled, labels)
    return Calibration(*before, fitted, *after, note)


def fit_thresholds(
    held_out: Said, wanted: Wanted, old: Thresholds | None, classes: Sequence[str]
) -> tuple[Thresholds | None, Threshold | None]:
    """Fit the requested thresholds on validation images; the others stay as in `old`.

    A threshold for a rate replaces those for a precision and a coverage, and vice versa. If no threshold reaches the
    rate, `old` is returned.
    """
    p = held_out.outputs.probabilities
    limit = ood.limit(energy(held_out.outputs.logits))
    if (rate := wanted.kept_rate) is not None:
        positive, _ = binary.positive_class(classes, wanted.positive)
        scores = _scores(held_out, classes.index(positive))
        point = binary.operating_point(*scores, rate, wanted.rates[rate], conservative=wanted.conservative)
        if point.threshold is None:
            return old, None
        new = Thresholds(
            len(p), ood_limit=limit, rate=rate, target_rate=point.target, positive=positive,
            positive_threshold=point.threshold,
        )  # fmt: skip
        return new, None
    new = replace(
        old or Thresholds(0), count=len(p), ood_limit=limit, rate=None, target_rate=None, positive=None,
        positive_threshold=None,
    )  # fmt: skip
    found = None
    target, coverage = wanted.target_precision, wanted.coverage
    if target is not None:
        found = abstain.threshold_for(
            p.max(1), p.argmax(1) == held_out.labels, target, conservative=wanted.conservative
        )
        new = replace(
            new, target_precision=target, confidence=found.confidence, share_answered=found.share_answered
        )  # fmt: skip
    if coverage is not None:
        quantile = conformal.fit(p, held_out.labels, coverage)
        new = replace(new, coverage=coverage, quantile=quantile)
    return new, found


def answered(judged: Said, classes: Sequence[str], thresholds: Thresholds, *, fitted: bool = False) -> Answered:
    """Apply the thresholds to the evaluated images as `decide` does; `fitted`: they were chosen on these images."""
    p = judged.outputs.probabilities
    made = np.array([d.decision for d in decide(p, judged.outputs.logits, classes, thresholds)])
    target = thresholds.target_precision
    done = abstain.reached(made == "class", labels(p, classes, thresholds) == judged.labels, target)
    return Answered(
        done.coverage, float((made == "set").mean()), float((made == "abstain").mean()), done.precision, done.interval,
        len(p), target, done.lower_bound, None if fitted or target is None else done.met,
    )  # fmt: skip


def select(judged: Said, held_out: Said | None) -> Selective | None:
    """Choose a confidence threshold on validation and evaluate it; None if both are the same images or none."""
    if held_out is None or held_out is judged:
        return None

    def sure_and_right(of: Said) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        p = of.outputs.probabilities
        return p.max(1), p.argmax(1) == of.labels

    return abstain.select(sure_and_right(held_out), sure_and_right(judged))


def check(wanted: Wanted, classes: Sequence[str]) -> None:
    """Raise `UsageError` if a request does not fit the classes, or a target is outside (0, 1)."""
    binary.check_positive(classes, wanted.positive)
    for rate, target in wanted.rates.items():
        if len(classes) != 2:
            raise UsageError(f"A target {rate} needs a model with two classes; this one has {len(classes)}.")
        if not 0 < target < 1:
            raise UsageError(f"The target {rate} must be between 0 and 1, e.g. 0.95; got {target}.")


def detect(
    evaluation: Evaluation, judged: Said, held_out: Said | None, wanted: Wanted, kept: Thresholds | None = None
) -> Binary | None:
    """Compute the binary metrics of two classes; None for another number of classes.

    Thresholds for target rates are chosen on `held_out` images; raises `DataError` if there are none. Without targets,
    the saved threshold of the model, `kept`, is evaluated.
    """
    classes = evaluation.classes
    if len(classes) != 2:
        return None
    p, truth = evaluation.probabilities, evaluation.labels
    found = binary.evaluate(p, truth, classes, evaluation.figures["auroc"], wanted.positive)
    k = classes.index(found.positive)
    own = _scores(judged, k)
    points: list[binary.OperatingPoint] = []
    if wanted.rates:
        if held_out is None:
            raise DataError("Thresholds are chosen on validation images, and there are none.")
        points = [
            binary.operating_point(*_scores(held_out, k), rate, target, conservative=wanted.conservative)
            for rate, target in wanted.rates.items()
        ]
    elif (
        kept is not None and kept.rate is not None and kept.target_rate is not None and kept.positive == found.positive
    ):
        points = [binary.OperatingPoint(kept.rate, kept.target_rate, kept.positive_threshold, kept.count, None)]
    if held_out is judged:
        return replace(found, operating_points=tuple(points))
    usual = () if held_out is None else binary.usual_points(_scores(held_out, k), own)
    return replace(found, operating_points=tuple(binary.tried(point, *own) for point in points), usual_points=usual)


def _scores(said: Said, k: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the probability of class number `k`, float64 [N], and whether an image is of it, bool [N]."""
    return said.outputs.probabilities[:, k].astype(np.float64), said.labels == k


def beside(judged: Said, held_out: Said | None) -> Shift | None:
    """Compare the evaluated images with the validation split; None if they are the same or it is not available."""
    if held_out is None or held_out is judged:
        return None
    first, second = ((of.outputs.probabilities, of.labels) for of in (held_out, judged))
    return shift.compare(first, second)


def covered(judged: Said, thresholds: Thresholds) -> Coverage | None:
    """Evaluate the prediction sets; None if none were fitted."""
    if thresholds.quantile is None or thresholds.coverage is None:
        return None
    p = judged.outputs.probabilities
    return conformal.judge(p, judged.labels, thresholds.quantile, thresholds.coverage)


def strangers(judged: Said, strange: Outputs, training: Said | None, name: str, at: Thresholds | None) -> Strangers:
    """Evaluate the detection of out-of-distribution images; the feature distance needs the training images."""
    own, other = energy(judged.outputs.logits), energy(strange.logits)
    by_distance = None
    if training is not None:
        distance = ood.fit_distance(training.outputs.features, training.labels)
        by_distance = ood.auroc(distance(judged.outputs.features), distance(strange.features))
    flagged = None if at is None or at.ood_limit is None else float((other > at.ood_limit).mean())
    note = "" if training is not None else "The distance in feature space needs the training images."
    return Strangers(name, ood.auroc(own, other), by_distance, len(own), len(other), flagged, note)
