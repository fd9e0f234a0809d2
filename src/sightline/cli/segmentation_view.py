"""Print the evaluation of masks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sightline.cli.evaluation_view import format_interval, format_number, print_metrics
from sightline.cli.output import print_line, print_table

if TYPE_CHECKING:  # annotations only: importing it loads the image packages
    from sightline.evaluation.segmentation import SegmentationReport


def print_report(report: SegmentationReport) -> None:
    """Print the metrics of masks, each class, what is confused, and the worst image."""
    evaluation = report.evaluation
    print_metrics(evaluation, report.split)
    columns = ["class", "IoU", "95% interval", "Dice", "precision", "recall", "of the pixels", "images"]
    cells = [
        [
            c.label, format_number(c.iou.value), format_interval(c.iou.interval, 3),
            *(format_number(m.value) for m in (c.dice, c.precision, c.recall)), f"{c.fraction:.1%}", str(c.support),
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
