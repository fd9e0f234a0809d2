"""A full evaluation report: calibration, selective prediction, prediction sets, OOD detection, from model outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import jsonio, metrics
from sightline.errors import DataError, UsageError, plural
from sightline.evaluation import binary, calibration, conformal, ood, selective, shift, slices
from sightline.evaluation.binary import BinaryReport
from sightline.evaluation.bootstrap import EACH_IMAGE, Resampling, number_groups
from sightline.evaluation.calibration import CalibrationReport
from sightline.evaluation.calibration_intervals import estimate_ece_interval
from sightline.evaluation.conformal import SetCoverage
from sightline.evaluation.error_analysis import ErrorAnalysis, analyze_errors
from sightline.evaluation.leakage import add_leakage
from sightline.evaluation.ood import OODResult
from sightline.evaluation.results import EvaluationResult, describe_report
from sightline.evaluation.scoring import compute_evaluation
from sightline.evaluation.selective import RiskCoverageCurve, SelectiveResult, Threshold
from sightline.evaluation.shift import SplitShift
from sightline.evaluation.slices import SliceMetrics
from sightline.inference.decisions import decide, predict_labels
from sightline.inference.ood import compute_energy, compute_scores
from sightline.inference.predictor import ModelOutputs, Outputs
from sightline.inference.results import Nonconformity, ThresholdRequest, Thresholds
from sightline.intervals import Interval
from sightline.tasks.protocol import EvaluationInputs


@dataclass(frozen=True, slots=True)
class DecisionMetrics:
    """The decisions of `thresholds` on the evaluated images: the fraction of each kind, and the precision.

    `interval` and `lower_bound`, the one-sided 95% bound of the precision, are those of `SelectiveMetrics`; `met` says
    whether it reaches the `target` precision, None if there is no target, or if the thresholds were fitted on these
    images.
    """

    class_fraction: float
    set_fraction: float
    abstained_fraction: float
    precision: float | None
    interval: Interval | None
    count: int
    target: float | None = None
    lower_bound: float | None = None
    met: bool | None = None


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """The evaluation of split `split` with all analyses; None for those not requested or not possible.

    `selective` are the decisions of `thresholds`, `selective_check` a threshold chosen on validation for the strictest
    target that it reaches, and `validation` how the validation split differs. In the order of `evaluation.paths`,
    `energies` float64 [N] are the out-of-distribution scores of the images, and `slice_masks`, bool [N] each, mark the
    images of each slice.
    """

    evaluation: EvaluationResult
    split: str
    calibration: CalibrationReport
    risk_coverage: RiskCoverageCurve
    errors: ErrorAnalysis
    slices: tuple[SliceMetrics, ...]
    thresholds: Thresholds | None = None
    threshold: Threshold | None = None
    selective: DecisionMetrics | None = None
    selective_check: SelectiveResult | None = None
    set_coverage: SetCoverage | None = None
    ood: OODResult | None = None
    binary: BinaryReport | None = None
    validation: SplitShift | None = None
    energies: NDArray[np.float64] | None = None
    slice_masks: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``metrics.json``: the metrics of the evaluation, and all analyses beside them."""
        skipped = ["evaluation", "energies", "slice_masks"]
        return self.evaluation.to_dict() | jsonio.fields_to_dict(self, skip=skipped)

    __repr__ = describe_report


def build_report(
    inputs: EvaluationInputs, compute_result: Callable[..., EvaluationResult] = compute_evaluation
) -> EvaluationReport:
    """Return the evaluation of a classifier.

    Its metrics are those of `compute_result`, a function with the parameters of `compute_evaluation`.
    """
    outputs, labeled, thresholds = inputs.outputs, inputs.labeled, inputs.thresholds
    validation_outputs, request = inputs.validation_outputs, inputs.threshold_request
    evaluate = partial(compute_result, inputs.classes, group_by_path=labeled.groups)
    evaluation = add_leakage(
        evaluate(outputs.outputs.probabilities, labeled.subset, unreadable=labeled.unreadable), labeled, evaluate
    )
    resampling = Resampling(groups=number_groups(labeled.subset.paths, labeled.groups))
    confidence, correct = evaluation.probabilities.max(1), evaluation.probabilities.argmax(1) == evaluation.labels
    masks = slices.find_slices(slices.image_properties(labeled.subset, labeled.images))
    return EvaluationReport(
        evaluation=evaluation,
        split=inputs.split,
        calibration=evaluate_calibration(outputs, validation_outputs, resampling),
        risk_coverage=selective.compute_risk_coverage(confidence, ~correct),
        errors=analyze_errors(evaluation),
        slices=slices.evaluate_slices(masks, correct, resampling.groups),
        thresholds=thresholds,
        threshold=_choose_threshold(validation_outputs, request),
        selective_check=evaluate_selective(outputs, validation_outputs, resampling),
        selective=None
        if thresholds is None
        else evaluate_decisions(outputs, inputs.classes, thresholds, resampling, fitted=inputs.are_fitted),
        set_coverage=None
        if thresholds is None
        else evaluate_sets(outputs, thresholds, resampling, fitted=inputs.are_fitted),
        binary=evaluate_binary(evaluation, outputs, validation_outputs, request, thresholds, resampling),
        validation=compare_with_validation(outputs, validation_outputs, inputs.validation_split),
        energies=compute_energy(outputs.outputs.logits),
        slice_masks=masks,
    )


def evaluate_calibration(
    evaluated: ModelOutputs, held_out: ModelOutputs | None, resampling: Resampling = EACH_IMAGE
) -> CalibrationReport:
    """Evaluate the calibration as served, and after temperature scaling fitted on `held_out`."""
    p, labels = evaluated.outputs.probabilities, evaluated.labels
    ece, bins = calibration.compute_ece(p, labels), calibration.reliability_bins(p, labels)
    report = CalibrationReport(ece, bins, None, None, (), "", *estimate_ece_interval(p, labels, resampling))
    if held_out is None:
        return replace(report, note="There are no validation images to fit a temperature on.")
    unit = "image" if held_out is evaluated else "validation image"
    fitted = calibration.fit_temperature(held_out.outputs.logits, held_out.labels, unit)
    if fitted.is_at_bound:
        return replace(report, temperature=fitted, note=fitted.note)
    calibrated = metrics.softmax(evaluated.outputs.logits / np.float32(fitted.value))
    note = fitted.note
    if len(labels) < calibration.MIN_IMAGES:
        note = note or f"The ECE of {plural(len(labels), 'image')} is mostly noise: it needs {calibration.MIN_IMAGES}."
    ece, bins = calibration.compute_ece(calibrated, labels), calibration.reliability_bins(calibrated, labels)
    return replace(report, temperature=fitted, ece_after=ece, bins_after=bins, note=note)


def fit_thresholds(
    held_out: ModelOutputs,
    request: ThresholdRequest,
    old: Thresholds | None,
    classes: Sequence[str],
    score: Nonconformity = "lac",
) -> tuple[Thresholds | None, Threshold | None]:
    """Fit the requested thresholds on validation images; the others stay as in `old`.

    A threshold for a rate replaces those for a precision and a coverage, and vice versa. If no threshold reaches the
    rate, `old` is returned.
    """
    p = held_out.outputs.probabilities
    detection = ood.fit_detection(Thresholds(len(p)), held_out, "energy")
    if (rate := request.saved_rate) is not None:
        positive, _ = binary.choose_positive_class(classes, request.positive)
        scores = _class_scores(held_out, classes.index(positive))
        point = binary.choose_operating_point(*scores, rate, request.rates[rate], conservative=request.conservative)
        if point.threshold is None:
            return old, None
        new = replace(
            detection, rate=rate, target_rate=point.target, positive=positive, positive_threshold=point.threshold
        )
        return new, None
    new = replace(
        old or detection, count=len(p), ood=detection.ood, ood_limit=detection.ood_limit, ood_space=detection.ood_space,
        rate=None, target_rate=None, positive=None, positive_threshold=None,
    )  # fmt: skip
    threshold, coverage = _choose_threshold(held_out, request), request.coverage
    if threshold is not None:
        new = replace(
            new, target_precision=threshold.target, confidence=threshold.confidence,
            selective_coverage=threshold.coverage,
        )  # fmt: skip
    if coverage is not None:
        quantile = conformal.fit_quantile(p, held_out.labels, coverage, score)
        new = replace(new, coverage=coverage, conformal_quantile=quantile, conformal=score)
    return new, threshold


def _choose_threshold(held_out: ModelOutputs | None, request: ThresholdRequest) -> Threshold | None:
    """Return the confidence for the target precision; None if there is no target, or no validation images."""
    if held_out is None or request.target_precision is None:
        return None
    p, labels, groups = held_out.outputs.probabilities, held_out.labels, held_out.groups
    target, conservative = request.target_precision, request.conservative
    return selective.choose_threshold(p.max(1), p.argmax(1) == labels, target, conservative=conservative, groups=groups)


def evaluate_decisions(
    evaluated: ModelOutputs,
    classes: Sequence[str],
    thresholds: Thresholds,
    resampling: Resampling = EACH_IMAGE,
    *,
    fitted: bool = False,
) -> DecisionMetrics:
    """Apply the thresholds to the evaluated images as `decide` does; `fitted`: they were chosen on these images."""
    p = evaluated.outputs.probabilities
    scores = compute_scores(thresholds, evaluated.outputs.logits, evaluated.outputs.features)
    decisions = np.array([d.decision for d in decide(p, scores, classes, thresholds)])
    target = thresholds.target_precision
    result = selective.evaluate_threshold(
        decisions == "class", predict_labels(p, classes, thresholds) == evaluated.labels, target, resampling
    )
    return DecisionMetrics(
        result.coverage, float((decisions == "set").mean()), float((decisions == "abstain").mean()), result.precision,
        result.interval,
        len(p), target, result.lower_bound, None if fitted or target is None else result.met,
    )  # fmt: skip


def evaluate_selective(
    evaluated: ModelOutputs, held_out: ModelOutputs | None, resampling: Resampling = EACH_IMAGE
) -> SelectiveResult | None:
    """Choose a confidence threshold on validation and evaluate it; None if both are the same images or none."""
    if held_out is None or held_out is evaluated:
        return None

    def confidences_and_correct(of: ModelOutputs) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        p = of.outputs.probabilities
        return p.max(1), p.argmax(1) == of.labels

    return selective.evaluate_selective(
        confidences_and_correct(held_out), confidences_and_correct(evaluated), resampling
    )


def check_request(request: ThresholdRequest, classes: Sequence[str]) -> None:
    """Raise `UsageError` if a request does not fit the classes, or a target is outside (0, 1)."""
    if request.recall is not None or request.fnr is not None:
        raise UsageError(
            "--target-recall and --target-fnr are for several labels per image: use --target-precision, "
            "--target-sensitivity or --coverage."
        )
    if request.min_iou is not None:
        raise UsageError("--min-iou is for models of masks: leave it out.")
    binary.check_positive_class(classes, request.positive)
    if request.rates and len(classes) != 2:
        rate = next(iter(request.rates))
        raise UsageError(f"A target {rate} needs a model with two classes; this one has {len(classes)}.")
    targets = {f"target {rate}": target for rate, target in request.rates.items()}
    for name, target in {"target precision": request.target_precision, "coverage": request.coverage, **targets}.items():
        if target is not None and not 0 < target < 1:
            raise UsageError(f"The {name} must be between 0 and 1, e.g. 0.95; got {target}.")


def evaluate_binary(
    evaluation: EvaluationResult,
    evaluated: ModelOutputs,
    held_out: ModelOutputs | None,
    request: ThresholdRequest,
    saved: Thresholds | None = None,
    resampling: Resampling = EACH_IMAGE,
) -> BinaryReport | None:
    """Compute the binary metrics of two classes; None for another number of classes.

    Thresholds for target rates are chosen on `held_out` images; raises `DataError` if there are none. Without targets,
    the saved threshold of the model, `saved`, is evaluated.
    """
    classes = evaluation.classes
    if len(classes) != 2:
        return None
    p, truth = evaluation.probabilities, evaluation.labels
    report = binary.evaluate_binary(p, truth, classes, evaluation.metrics["auroc"], request.positive, resampling)
    evaluated_scores = _class_scores(evaluated, k := classes.index(report.positive))
    points: list[binary.OperatingPoint] = []
    if request.rates:
        if held_out is None:
            raise DataError(
                "Thresholds are chosen on validation images, and there are none: give images with a validation split."
            )
        points = [
            binary.choose_operating_point(
                *_class_scores(held_out, k), rate, target, conservative=request.conservative, groups=held_out.groups
            )
            for rate, target in request.rates.items()
        ]
    elif (
        saved is not None
        and saved.rate is not None
        and saved.target_rate is not None
        and saved.positive == report.positive
    ):
        points = [binary.OperatingPoint(saved.rate, saved.target_rate, saved.positive_threshold, saved.count, None)]
    if held_out is evaluated:
        return replace(report, operating_points=tuple(points))
    usual: tuple[binary.OperatingPoint, ...] = ()
    if held_out is not None:
        usual = binary.choose_usual_points(_class_scores(held_out, k), evaluated_scores, resampling, held_out.groups)
    points = [binary.evaluate_operating_point(point, *evaluated_scores, resampling) for point in points]
    return replace(report, operating_points=tuple(points), usual_points=usual)


def _class_scores(outputs: ModelOutputs, k: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the probability of class number `k`, float64 [N], and whether an image is of it, bool [N]."""
    return outputs.outputs.probabilities[:, k].astype(np.float64), outputs.labels == k


def compare_with_validation(evaluated: ModelOutputs, held_out: ModelOutputs | None, split: str) -> SplitShift | None:
    """Compare the evaluated images with the validation split, or with the predictions of folds instead.

    None if they are the same, if there is no such split, or if all images of one of the two are of one group.
    """
    if held_out is None or held_out is evaluated:
        return None
    first, second = ((of.outputs.probabilities, of.labels) for of in (held_out, evaluated))
    are_grouped = held_out.groups is not None or evaluated.groups is not None
    groups = (_list_groups(held_out), _list_groups(evaluated)) if are_grouped else None
    result = shift.compare_splits(first, second, groups)
    return None if result is None else replace(result, split=split)


def _list_groups(outputs: ModelOutputs) -> NDArray[np.int64]:
    return np.arange(len(outputs.labels), dtype=np.int64) if outputs.groups is None else outputs.groups


def add_groups(outputs: ModelOutputs, paths: Sequence[str], groups: Mapping[str, str]) -> ModelOutputs:
    """Return the outputs for the images at `paths` with their groups, as `compare_with_validation` uses them."""
    return replace(outputs, groups=number_groups(paths, groups))


def evaluate_sets(
    evaluated: ModelOutputs, thresholds: Thresholds, resampling: Resampling = EACH_IMAGE, *, fitted: bool = False
) -> SetCoverage | None:
    """Evaluate the prediction sets; None if there are none. `fitted`: they were fitted on these images."""
    if thresholds.conformal_quantile is None or thresholds.coverage is None:
        return None
    p = evaluated.outputs.probabilities
    result = conformal.evaluate_sets(
        p, evaluated.labels, thresholds.conformal_quantile, thresholds.coverage, thresholds.conformal, resampling
    )
    return replace(result, fitted=fitted)


def evaluate_ood(
    evaluated: ModelOutputs,
    ood_outputs: Outputs,
    held_out: ModelOutputs | None,
    name: str,
    thresholds: Thresholds | None,
    energy: Callable[[NDArray[np.float32]], NDArray[np.float64]] = compute_energy,
) -> OODResult:
    """Evaluate the detection of out-of-distribution images by the `energy` of their logits and by feature distance.

    The distance is that of the `thresholds`, else that from the validation images, `held_out`.
    """
    space = None if thresholds is None else thresholds.ood_space
    if space is None and held_out is not None:
        space = ood.fit_space(held_out.outputs.features)
    features, distances = evaluated.outputs.features, None
    if space is not None and features.shape[1]:
        is_fitted = evaluated is held_out and len(features) >= ood.MIN_IMAGES
        distances = ood.measure_held_out(features, evaluated.groups) if is_fitted else space.measure(features)
    flagged = false_alarms = histogram = None
    if thresholds is not None and thresholds.ood_limit is not None:
        scores = compute_scores(thresholds, ood_outputs.logits, ood_outputs.features)
        own_scores = compute_scores(thresholds, evaluated.outputs.logits, features)
        if thresholds.ood_space is not None and distances is not None:
            own_scores = distances  # held out
        flagged = float((scores > thresholds.ood_limit).mean())
        false_alarms = float((own_scores > thresholds.ood_limit).mean())
        histogram = ood.make_histogram(own_scores, scores, thresholds.ood_limit)
    return OODResult(
        name,
        ood.ood_auroc(energy(evaluated.outputs.logits), energy(ood_outputs.logits)),
        None if space is None or distances is None else ood.ood_auroc(distances, space.measure(ood_outputs.features)),
        len(features),
        len(ood_outputs.logits),
        flagged,
        false_alarms,
        "" if distances is not None else ood.NO_DISTANCE_NOTE,
        histogram,
    )
