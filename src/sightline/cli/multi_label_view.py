"""Print the evaluation of a multi-label model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from sightline.cli.evaluation_view import (
    format_interval,
    format_number,
    list_ood_lines,
    metric_cells,
    print_metrics,
)
from sightline.cli.output import print_line, print_table
from sightline.data.types import OUT_OF_FOLD
from sightline.errors import list_some, plural

if TYPE_CHECKING:  # annotations only: importing it loads the image packages
    from sightline.evaluation.label_issues import LabelIssueCount
    from sightline.evaluation.label_thresholds import LabelDecisions
    from sightline.evaluation.multi_label import MultiLabelReport
    from sightline.evaluation.selective import SelectiveMetrics


def print_report(report: MultiLabelReport, fitted: str) -> None:
    """Print the metrics of a multi-label evaluation, the classes, and the confusions.

    `fitted` is a note if the thresholds were fitted on these images, "" if not.
    """
    evaluation = report.evaluation
    fitted = "" if report.split == OUT_OF_FOLD else fitted  # each fold uses thresholds from the others
    print_metrics(evaluation, report.split)
    columns = ["class", "average precision", "AUROC", "precision", "recall", "F1", "threshold", "images"]
    cells = [
        [
            c.label, *map(format_number, (c.average_precision.value, c.auroc.value, c.precision, c.recall, c.f1)),
            "always" if c.threshold == 0 else format_number(c.threshold) or "never", str(c.support),
        ]
        for c in evaluation.per_class
    ]  # fmt: skip
    print_table(columns, cells, right=columns[1:], rest="--format json has all classes")
    for text in (*_threshold_lines(report, fitted), *_label_set_lines(report, fitted), *list_ood_lines(report.ood)):
        print_line(text)
    if report.decisions is not None:
        _print_decisions(report.decisions)
    if pairs := report.errors.confused_pairs:
        text = ", ".join(f"{p.predicted} predicted where {p.label} is missed ({p.count})" for p in pairs[:3])
        print_line()
        print_line(f"most confused: {text}")
    if together := report.errors.pair_errors:
        text = ", ".join(
            f"{p.first} and {p.second} (wrongly together {p.wrong}, missed together {p.missed})" for p in together[:3]
        )
        print_line(f"pairs with the most errors: {text}")


def print_label_issue_counts(counts: Sequence[LabelIssueCount]) -> None:
    """Print how many labels of each class are possibly missing or wrong."""
    if counts:
        rows = [[count.label, str(count.missing), str(count.wrong)] for count in counts]
        columns = ["class", "possibly missing", "possibly wrong"]
        print_line()
        print_table(columns, rows, right=columns[1:], rest="--format json has all classes")


def _threshold_lines(report: MultiLabelReport, fitted: str) -> Iterator[str]:
    """Yield the target of the thresholds, unless it is the highest F1, and the classes that miss it."""
    t = report.thresholds
    target = (
        None if t is None else {"precision": t.target_precision, "recall": t.target_recall}.get(str(t.label_target))
    )
    if t is not None and report.split == OUT_OF_FOLD:
        yield "decisions: each fold uses thresholds fitted on the other folds"
    if t is not None and t.label_target == "f1" and fitted:
        yield f"thresholds for the highest F1, chosen {fitted}"
    if t is None or target is None:
        return
    images = plural(t.count, "validation image")
    yield f"thresholds for a {t.label_target} of {target:g} of each class, chosen on {images}"
    if fitted:
        yield f"  they were chosen {fitted}"
    if report.note:
        yield f"  {report.note}"
    if report.unreached:
        listed = list_some(report.unreached, 5)
        result = "never predicted" if t.label_target == "precision" else "predicted for every image"
        yield (
            f"  the validation images do not show that any threshold reaches the target for {listed}: "
            f"{'it is' if len(report.unreached) == 1 else 'they are'} {result}; use more validation images, or "
            "--no-conservative, which misses the target on new images about half of the time"
        )


def _label_set_lines(report: MultiLabelReport, fitted: str) -> Iterator[str]:
    s = report.label_sets
    if s is None:
        return
    value, ends, note = metric_cells(s.fnr)
    yield (
        f"label sets for a false-negative rate of {s.target:g}: they miss {value or 'nothing'} of the labels of an "
        f"image ({ends or note}), {s.mean_size:.2f} classes on average, {s.empty_fraction:.1%} empty"
    )
    if fitted:
        yield f"  their threshold was chosen {fitted}"


def _print_decisions(decisions: Sequence[LabelDecisions]) -> None:
    """Print how often and how precisely the model decides on each class."""
    print_line()
    columns = ["class", "present", "precision", "95% interval", "absent", "precision", "95% interval", "undecided"]
    rows = [[d.label, *_decision_cells(d.present), *_decision_cells(d.absent), f"{d.undecided:.1%}"] for d in decisions]
    print_table(
        columns, rows, right=["present", "precision", "absent", "undecided"], rest="--format json has all classes"
    )


def _decision_cells(metrics: SelectiveMetrics) -> list[str]:
    return [f"{metrics.coverage:.1%}", format_number(metrics.precision), format_interval(metrics.interval, 3)]
