"""Pixel calibration, and abstention on masks whose expected IoU is low.

The threshold is chosen on validation images so that a given fraction of the accepted masks has at least a given IoU;
see `selective.choose_threshold`, for which such a mask counts as right.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sightline import metrics
from sightline.errors import UsageError
from sightline.evaluation import calibration, selective
from sightline.evaluation.bootstrap import Resampling, choose_groups
from sightline.evaluation.calibration import CalibrationReport
from sightline.evaluation.mask_outputs import MaskOutputs
from sightline.evaluation.results import Metric
from sightline.evaluation.segmentation_metrics import compute_image_iou
from sightline.evaluation.selective import RiskCoverageCurve, Threshold
from sightline.inference.results import ThresholdRequest, Thresholds
from sightline.intervals import Interval

DEFAULT_MIN_IOU = 0.5


@dataclass(frozen=True, slots=True)
class MaskDecisions:
    """The effect of a model's threshold on `count` images: the fraction of accepted masks, and how good they are.

    `precision` is the fraction of accepted masks with an IoU of at least `min_iou`, with the 95% `interval` and the
    one-sided 95% `lower_bound` of `selective.SelectiveMetrics`; None if none is accepted. `met` says whether the bound
    reaches the `target`; None if the threshold was chosen on these images. `mean_iou` is the mean over the accepted
    images.
    """

    coverage: float
    precision: float | None
    interval: Interval | None
    mean_iou: Metric
    count: int
    target: float
    min_iou: float
    lower_bound: float | None
    met: bool | None


def check_request(request: ThresholdRequest) -> None:
    """Raise `UsageError` for targets that have no meaning for masks, or that are not between 0 and 1."""
    if (
        request.positive
        or request.rates
        or any(target is not None for target in (request.coverage, request.recall, request.fnr))
    ):
        raise UsageError(
            "A positive class and targets of sensitivity, specificity, recall, false-negative rate and coverage are "
            "for labels of whole images: leave them out. --target-precision with --min-iou chooses the masks that are "
            "accepted."
        )
    if request.min_iou is not None and request.target_precision is None:
        raise UsageError("--min-iou says which masks count for --target-precision: give both, e.g. 0.7 and 0.9.")
    for name, value in (("target precision", request.target_precision), ("smallest IoU", request.min_iou)):
        if value is not None and not 0 < value < 1:
            raise UsageError(f"The {name} must be between 0 and 1, e.g. 0.9; got {value}.")


def fit_thresholds(held_out: MaskOutputs, request: ThresholdRequest, old: Thresholds | None) -> Thresholds | None:
    """Return the smallest quality that reaches the target precision on validation images; `old` without a target."""
    threshold = choose_threshold(held_out, request)
    if threshold is None:
        return old
    return replace(
        old or Thresholds(0), count=threshold.count, target_precision=threshold.target, quality=threshold.confidence,
        selective_coverage=threshold.coverage, min_iou=_get_min_iou(request),
    )  # fmt: skip


def choose_threshold(held_out: MaskOutputs | None, request: ThresholdRequest) -> Threshold | None:
    """Return the quality for the target precision; None if there is no target, or no validation images."""
    if held_out is None or request.target_precision is None:
        return None
    known, qualities, ious = _compare_qualities(held_out)
    return selective.choose_threshold(
        qualities, ious >= _get_min_iou(request), request.target_precision, conservative=request.conservative,
        groups=choose_groups(held_out.groups, known),
    )  # fmt: skip


def _compare_qualities(
    outputs: MaskOutputs,
) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.float64]]:
    """Return which images have a pixel with a class, bool [N], and their quality and mean IoU, float64 [n] each."""
    ious = compute_image_iou(outputs.confusions)
    known = np.isfinite(ious)
    return known, outputs.quality[known], ious[known]


def _get_min_iou(request: ThresholdRequest) -> float:
    return DEFAULT_MIN_IOU if request.min_iou is None else request.min_iou


def evaluate_decisions(
    outputs: MaskOutputs,
    thresholds: Thresholds | None,
    groups: NDArray[np.int64] | None = None,
    *,
    is_fitted: bool = False,
) -> MaskDecisions | None:
    """Apply a threshold to evaluated images; None without one. `is_fitted`: it was chosen on these images.

    `groups` [N] are the numbers of their groups; None if images are independent.
    """
    if thresholds is None or thresholds.min_iou is None or thresholds.target_precision is None:
        return None
    known, qualities, ious = _compare_qualities(outputs)
    resampling = Resampling(groups=choose_groups(groups, known))
    accepted = qualities >= (np.inf if thresholds.quality is None else thresholds.quality)
    result = selective.evaluate_threshold(accepted, ious >= thresholds.min_iou, thresholds.target_precision, resampling)
    return MaskDecisions(
        result.coverage, result.precision, result.interval,
        _average(ious[accepted], choose_groups(resampling.groups, accepted)), result.count,
        thresholds.target_precision, thresholds.min_iou, result.lower_bound, None if is_fitted else result.met,
    )  # fmt: skip


def _average(ious: NDArray[np.float64], groups: NDArray[np.int64] | None) -> Metric:
    if not len(ious):
        return Metric(None, None, "no mask is accepted")
    resampling = Resampling(groups=groups)
    means = resampling.resample_means(ious[:, None], "accepted")[:, 0]
    return resampling.make_metric(float(ious.mean()), means, len(ious))


def compute_risk_coverage(outputs: MaskOutputs) -> RiskCoverageCurve:
    """Return one minus the mean IoU of the images of the highest quality, at each coverage."""
    _, qualities, ious = _compare_qualities(outputs)
    return selective.compute_risk_coverage(qualities, 1 - ious)


def evaluate_calibration(evaluated: MaskOutputs, held_out: MaskOutputs | None) -> CalibrationReport:
    """Evaluate the calibration of all pixels as served, and of the sampled ones at the temperature of `held_out`."""
    sums = evaluated.reliability.sum(0)
    ece = float(calibration.compute_binned_ece(sums)) if sums[:, 0].any() else None
    before = ece, calibration.make_bins(sums)
    if held_out is None or not len(held_out.pixel_labels):
        note = "There are no validation pixels to fit a temperature on."
        return CalibrationReport(*before, None, None, (), note)
    fitted = calibration.fit_temperature(held_out.pixel_logits, held_out.pixel_labels, "pixel")
    if fitted.is_at_bound:
        return CalibrationReport(*before, fitted, None, (), fitted.note)
    calibrated = metrics.softmax(evaluated.pixel_logits / np.float32(fitted.value))
    sums = calibration.sum_bins(calibrated.max(1), calibrated.argmax(1) == evaluated.pixel_labels)
    after = float(calibration.compute_binned_ece(sums)), calibration.make_bins(sums)
    return CalibrationReport(*before, fitted, *after, fitted.note)
