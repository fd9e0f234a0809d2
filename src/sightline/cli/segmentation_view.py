"""Print predicted masks, and their evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from sightline.cli.evaluation_view import (
    describe_verdict,
    format_interval,
    format_number,
    list_calibration_lines,
    name_these,
    print_metrics,
)
from sightline.cli.output import print_line, print_table
from sightline.escaping import printable

if TYPE_CHECKING:  # annotations only: importing it loads the image packages
    from sightline.evaluation.segmentation import SegmentationReport
    from sightline.inference.masks import MaskPrediction

MAX_SHOWN = 5  # classes per row


def print_masks(predictions: Iterable[MaskPrediction]) -> Iterator[MaskPrediction]:
    """Print the largest areas, the quality and the decision of each mask as soon as it is ready."""
    for prediction in predictions:
        path = f"{printable(prediction.path)}  "
        if prediction.error is not None:
            print_line(path, (prediction.error, "red"))
        else:
            areas = ", ".join(f"{label} {area:.1%}" for label, area in prediction.areas[:MAX_SHOWN])
            abstains = "  abstain" if prediction.decision == "abstain" else ""
            print_line(path, areas, (f"  quality {prediction.quality:.3f}", "dim"), abstains)
        yield prediction


def print_report(report: SegmentationReport, fitted: str) -> None:
    """Print the metrics of masks, the classes, the confusions, and the worst image.

    `fitted` is a note if the threshold may have been fitted on these images.
    """
    evaluation = report.evaluation
    print_metrics(evaluation, report.split)
    columns = ["class", "IoU", "95% interval", "Dice", "precision", "recall", "boundary F1", "of the pixels", "images"]
    cells = [
        [
            c.label, format_number(c.iou.value), format_interval(c.iou.interval, 3),
            *(format_number(m.value) for m in (c.dice, c.precision, c.recall, c.boundary_f1)), f"{c.fraction:.1%}",
            str(c.support),
        ]
        for c in evaluation.per_class
    ]  # fmt: skip
    right = [name for name in columns if name not in {"class", "95% interval"}]
    print_table(columns, cells, right=right, rest="--format json has all classes")
    if pairs := report.errors.confused_pairs:
        text = ", ".join(f"{p.label} predicted as {p.predicted} ({p.fraction:.0%} of its pixels)" for p in pairs[:3])
        print_line()
        print_line(f"most confused: {text}")
    for example in report.errors.worst_images[:1]:
        print_line(f"worst image: {example.path}, IoU {example.iou:.3f}")
    for text in (*list_calibration_lines(report.calibration), *_list_decision_lines(report, fitted)):
        print_line(text)


def _list_decision_lines(report: SegmentationReport, fitted: str) -> Iterator[str]:
    """Yield how well the expected IoU predicts the quality of masks, and the effect of its threshold."""
    if len(report.risk_coverage.risk):
        yield f"risk-coverage: area {report.risk_coverage.aurc:.4f}, of one minus the IoU by the quality of a mask"
    threshold, decisions = report.threshold, report.selective
    if threshold is not None and threshold.confidence is None:
        yield f"  precision {threshold.target:g}: {threshold.note}"
    elif threshold is not None:
        yield (
            f"  precision {threshold.target:g}: quality {threshold.confidence:.4f} accepts {threshold.coverage:.1%} of "
            f"{threshold.count} validation masks; precision {threshold.precision:.4f} (at least "
            f"{threshold.lower_bound:.4f} with 95% confidence)"
        )
        if threshold.note:
            yield f"  {threshold.note}"
    if decisions is None:
        return
    reached = "" if decisions.precision is None else f", {decisions.precision:.1%} of them with an IoU of at least"
    iou = format_number(decisions.mean_iou.value)
    yield (
        f"  on {name_these(decisions.count)}: accepts {decisions.coverage:.1%}"
        f"{iou and f' with a mean IoU of {iou}'}{reached and f'{reached} {decisions.min_iou:g}'}; abstains on "
        f"{1 - decisions.coverage:.1%}"
    )
    if decisions.met is None:
        yield f"  the threshold was chosen {fitted}"
    elif decisions.lower_bound is not None:
        verdict = describe_verdict(decisions.met, decisions.interval, decisions.target)
        bound = f"is at least {decisions.lower_bound:.4f} with 95% confidence"
        yield f"  target {decisions.target:g} {verdict}: the precision {bound}"
