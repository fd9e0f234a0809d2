"""Full evaluation of masks: pixel metrics with intervals over images, confused classes, the worst images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import jsonio
from sightline.data.types import Subset, UnreadableImage
from sightline.evaluation import bootstrap, mask_decisions, segmentation_metrics
from sightline.evaluation.bootstrap import Resampling
from sightline.evaluation.calibration import CalibrationReport
from sightline.evaluation.leakage import add_leakage
from sightline.evaluation.mask_decisions import MaskDecisions
from sightline.evaluation.mask_outputs import MaskOutputs
from sightline.evaluation.results import TaskResult, describe_report
from sightline.evaluation.scoring import find_accuracy_interval
from sightline.evaluation.segmentation_metrics import MaskClassMetrics
from sightline.evaluation.selective import RiskCoverageCurve, Threshold
from sightline.inference.mask_quality import decide_mask
from sightline.inference.results import Thresholds
from sightline.tasks.protocol import EvaluationInputs

MAX_PAIRS = 10


@dataclass(frozen=True, slots=True, repr=False)
class SegmentationResult(TaskResult):
    """The metrics of masks on images with a mask each.

    `accuracy` is the fraction of pixels whose class is predicted, `loss` the mean cross-entropy of a pixel in an image.
    `probabilities` float32 [N, K] are the means over the pixels of each image, `labels` bool [N, K] the classes that it
    has, `confusions` int64 [N, K, K] the pixels of each class (rows) by the predicted one, and `quality` float64 [N]
    the IoU expected from the probabilities of each image.
    """

    per_class: tuple[MaskClassMetrics, ...]
    confusions: NDArray[np.int64] = field(kw_only=True)
    quality: NDArray[np.float64] = field(kw_only=True)
    headlines = ("mean_iou", "mean_dice")


@dataclass(frozen=True, slots=True)
class MaskExample:
    """Image number `index` of the evaluation: the mean IoU of its own classes, and the classes most confused in it.

    `quality` is the IoU expected from its probabilities, and `mask` the predicted mask, uint8 [H, W].
    """

    index: int
    path: str
    iou: float
    label: str
    predicted: str
    quality: float
    mask: NDArray[np.uint8] = field(repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields except the number of the image and its mask as JSON values."""
        return jsonio.fields_to_dict(self, skip=["index", "mask"])


@dataclass(frozen=True, slots=True)
class ClassPair:
    """A `fraction` of the pixels of class `label` is predicted as `predicted`."""

    label: str
    predicted: str
    fraction: float


@dataclass(frozen=True, slots=True)
class MaskErrors:
    """The images with the lowest IoU, the lowest first, and the classes that are confused most."""

    worst_images: tuple[MaskExample, ...]
    confused_pairs: tuple[ClassPair, ...]


@dataclass(frozen=True, slots=True)
class SegmentationReport:
    """The evaluation of split `split`, with the images to look at.

    The risk of `risk_coverage` is one minus the mean IoU of the images of the highest quality. `threshold` is the
    requested threshold on validation images, and `selective` the effect of the model's threshold on the evaluated ones;
    None without one.
    """

    evaluation: SegmentationResult
    split: str
    errors: MaskErrors
    calibration: CalibrationReport
    risk_coverage: RiskCoverageCurve
    thresholds: Thresholds | None = None
    threshold: Threshold | None = None
    selective: MaskDecisions | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``metrics.json``."""
        return {"task": "segmentation"} | self.evaluation.to_dict() | jsonio.fields_to_dict(self, skip=["evaluation"])

    __repr__ = describe_report


def list_image_metrics(result: SegmentationResult, thresholds: Thresholds | None = None) -> Iterator[dict[str, Any]]:
    """Yield the path, the mean IoU of its own classes, the pixel accuracy and the quality of each image.

    With `thresholds`, also their decision.
    """
    ious = segmentation_metrics.compute_image_iou(result.confusions)
    accuracies = segmentation_metrics.compute_pixel_accuracy(result.confusions)
    columns = (result.paths, ious.tolist(), accuracies.tolist(), result.quality.tolist())
    for path, iou, accuracy, quality in zip(*columns, strict=True):
        known = math.isfinite(accuracy)  # otherwise no pixel of the image has a class
        row = {"path": path, "iou": iou if known else None, "pixel_accuracy": accuracy if known else None}
        decision = decide_mask(quality, thresholds)
        yield row | {"quality": quality} | ({} if decision is None else {"decision": decision.decision})


def build_report(
    inputs: EvaluationInputs, outputs: MaskOutputs, held_out: MaskOutputs | None = None
) -> SegmentationReport:
    """Return the evaluation for images whose labels are masks; both outputs are those of `inputs`."""
    labeled, thresholds = inputs.labeled, inputs.thresholds
    positions = {path: i for i, path in enumerate(labeled.subset.paths)}

    def evaluate(
        rows: NDArray[np.float32], samples: Subset, unreadable: Sequence[UnreadableImage] = ()
    ) -> SegmentationResult:
        at = np.array([positions[path] for path in samples.paths], np.int64)
        groups = bootstrap.number_groups(samples.paths, labeled.groups)
        return _evaluate(inputs.classes, rows, outputs, at, samples.paths, unreadable, groups)

    means, groups = outputs.outputs.probabilities, bootstrap.number_groups(labeled.subset.paths, labeled.groups)
    evaluation = add_leakage(evaluate(means, labeled.subset, labeled.unreadable), labeled, evaluate)
    return SegmentationReport(
        evaluation,
        inputs.split,
        _find_errors(evaluation, outputs),
        mask_decisions.evaluate_calibration(outputs, held_out),
        mask_decisions.compute_risk_coverage(outputs),
        thresholds,
        mask_decisions.choose_threshold(held_out, inputs.threshold_request),
        mask_decisions.evaluate_decisions(outputs, thresholds, groups, is_fitted=inputs.are_fitted),
    )


def _evaluate(
    classes: tuple[str, ...],
    probabilities: NDArray[np.float32],
    outputs: MaskOutputs,
    at: NDArray[np.int64],
    paths: tuple[str, ...],
    unreadable: Sequence[UnreadableImage],
    groups: NDArray[np.int64] | None,
) -> SegmentationResult:
    confusions, losses = outputs.confusions[at], outputs.losses[at]
    metrics, per_class = segmentation_metrics.compute_mask_metrics(
        classes, confusions, outputs.boundaries[at], outputs.reliability[at], Resampling(groups=groups)
    )
    num_groups = bootstrap.count_groups(groups)
    accuracy = metrics["pixel_accuracy"]
    known = losses[np.isfinite(losses)]
    return SegmentationResult(
        classes=classes,
        accuracy=accuracy.value,
        accuracy_interval=find_accuracy_interval(accuracy, num_groups or len(paths)),
        loss=float(known.mean()) if len(known) else None,
        count=len(paths),
        per_class=per_class,
        unreadable=tuple(unreadable),
        paths=paths,
        labels=confusions.sum(2) > 0,
        probabilities=probabilities,
        seconds=0.0,
        metrics=metrics,
        groups=num_groups,
        confusions=confusions,
        quality=outputs.quality[at],
    )


def _find_errors(evaluation: SegmentationResult, outputs: MaskOutputs) -> MaskErrors:
    classes, confusions = evaluation.classes, evaluation.confusions
    ious = segmentation_metrics.compute_image_iou(confusions)
    order = sorted(outputs.worst_masks, key=lambda i: (ious[i], i))
    examples = tuple(
        MaskExample(
            i,
            evaluation.paths[i],
            float(ious[i]),
            *_most_confused(classes, confusions[i]),
            float(evaluation.quality[i]),
            outputs.worst_masks[i],
        )
        for i in order
    )
    total = confusions.sum(0)
    fractions = total / np.maximum(total.sum(1, keepdims=True), 1)
    np.fill_diagonal(fractions, 0)
    pairs = tuple(
        ClassPair(classes[i], classes[j], float(fractions[i, j]))
        for i, j in (
            divmod(int(at), len(classes)) for at in np.argsort(-fractions, axis=None, kind="stable")[:MAX_PAIRS]
        )
        if fractions[i, j] > 0
    )
    return MaskErrors(examples, pairs)


def _most_confused(classes: Sequence[str], confusion: NDArray[np.int64]) -> tuple[str, str]:
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    true, predicted = divmod(int(wrong.argmax()), len(classes))
    return (classes[true], classes[predicted]) if wrong.any() else ("", "")
