"""Print an evaluation report: calibration, abstention, out-of-distribution detection, errors, slices, label issues."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from sightline.cli.output import print_line, print_table
from sightline.data.types import OUT_OF_FOLD, describe_unreadable
from sightline.errors import plural

if TYPE_CHECKING:  # annotations only: importing it loads the image packages
    from sightline.evaluation.binary import OperatingPoint
    from sightline.evaluation.calibration import CalibrationReport
    from sightline.evaluation.hierarchy import HierarchyMetrics
    from sightline.evaluation.label_issues import LabelIssue, LabelSetIssue
    from sightline.evaluation.ood import OODResult
    from sightline.evaluation.report import EvaluationReport
    from sightline.evaluation.results import Metric, TaskReport, TaskResult
    from sightline.intervals import Interval

ON_THESE = "on these same images: evaluate on others for an unbiased value"
PERHAPS_ON_THESE = "on validation images: if these are among them, evaluate on others for an unbiased value"
MAX_ROWS = 5  # rows shown of a list; the JSON has all
RATES = {"sensitivity": "sensitivity", "specificity": "specificity", "ppv": "PPV", "npv": "NPV"}  # as printed


def describe_fit(report: TaskReport, split: str | None, *, is_new: bool) -> str:
    """Return a note on the images that the thresholds were fitted on, "" if surely not on the evaluated ones.

    `is_new` means that they were fitted in this evaluation of `split`. For a model without its run, the images that its
    stored thresholds were fitted on are unknown.
    """
    if report.split != "other":
        return ON_THESE if report.split in {"validation", OUT_OF_FOLD} else ""
    if split != "validation":
        return ""
    return ON_THESE if is_new else PERHAPS_ON_THESE


def print_report(report: EvaluationReport, fitted: str = ON_THESE) -> None:
    """Print an evaluation report in a few lines; `fitted` is a note if thresholds may be fitted on these images."""
    from sightline.evaluation.hierarchy import HierarchyReport

    print_line()
    if isinstance(report, HierarchyReport):
        _print_levels(report.hierarchy)
    _print_detection(report, fitted)
    for text in (
        *list_calibration_lines(report.calibration),
        *_shift_lines(report),
        *_selective_lines(report, fitted),
        *_list_set_lines(report, fitted),
        *list_ood_lines(report.ood),
        *_slice_lines(report),
    ):
        print_line(text)
    if wrong := report.errors.most_confident_errors:
        print_line()
        print_line("most confident errors")
        grades = [[] if a.expected_grade is None else [f"{a.expected_grade:.2f}"] for a in wrong]
        rows = [[a.path, a.label, a.predicted, f"{a.probability:.3f}", *g] for a, g in zip(wrong, grades, strict=True)]
        columns = ["image", "true class", "predicted", "confidence", *(["expected grade"] if grades[0] else [])]
        count = report.errors.count
        rest = f"--format json lists {'all' if count == len(rows) else f'the first {len(rows)}'}"
        print_table(columns, rows, right=["confidence", "expected grade"], limit=MAX_ROWS, rest=rest, total=count)


def _print_levels(hierarchy: HierarchyMetrics) -> None:
    """Print the accuracy at each level of a tree, and the precision at each depth."""
    columns = ["level", "classes", "accuracy", "95% interval", "predicted", "precision", "95% interval"]
    rows = [
        [str(level.level), str(level.classes), f"{level.accuracy:.4f}", format_interval(level.interval, 4),
         f"{at.fraction:.1%}", "" if at.precision is None else f"{at.precision:.4f}", format_interval(at.interval, 4)]
        for level, at in zip(hierarchy.levels, hierarchy.depths[1:], strict=True)
    ]  # fmt: skip
    print_table(columns, rows, right=["level", "classes", "accuracy", "predicted", "precision"])
    without = hierarchy.depths[0].fraction
    print_line(f"predicted: the deepest class that reaches the threshold; none does for {without:.1%}")
    print_line()


def print_label_issues(
    issues: Sequence[LabelIssue | LabelSetIssue],
    patch: str,
    unchecked_classes: Sequence[str],
    agreement: float | None,
) -> None:
    """Print the most suspicious labels, where to find them all, and the classes that could not be checked.

    `agreement` is the fraction of the labels that the models predict which check them; None if images have several.
    """
    from sightline.evaluation.label_issues import LabelSetIssue
    from sightline.report import sentences

    print_line()
    count = len(issues)
    several = any(isinstance(issue, LabelSetIssue) for issue in issues)
    text = f"labels of {plural(count, 'image')}" if several else plural(count, "label")
    if issues:
        print_line(f"{text} may be wrong, worst first; proposed fixes are in {patch}")
        rows = [[s.path, s.label, _describe_suggestion(s)] for s in issues]
        print_table(["image", "label", "looks like"], rows, limit=MAX_ROWS, rest=f"all are in {patch}")
        if agreement is not None:
            print_line(
                f"the models behind these suggestions agree with {agreement:.1%} of all labels; the lower this is, the "
                "more suggestions are wrong"
            )
        if several:
            print_line("look at each image before you apply a fix: in a long list, most labels near its end are right")
    else:
        print_line("no label looks wrong")
    if unchecked_classes:
        verb = "has" if len(unchecked_classes) == 1 else "have"
        names = sentences.list_names(unchecked_classes)
        print_line(
            f"{plural(len(unchecked_classes), 'class', 'classes')} {verb} too few images for the labels to be checked: "
            f"{names}"
        )


def _describe_suggestion(issue: LabelIssue | LabelSetIssue) -> str:
    """Return the suggested class and its probability, or the labels to add to and remove from an image."""
    from sightline.evaluation.label_issues import LabelIssue

    if isinstance(issue, LabelIssue):
        return f"{issue.suggested_label} {issue.probability:.2f}"
    changes = [("+", issue.missing), ("-", issue.wrong)]
    return ", ".join(f"{sign}{c.label} {c.probability:.2f}" for sign, classes in changes for c in classes)


def _print_detection(report: EvaluationReport, fitted: str) -> None:
    """Print how well the positive class is detected, and the rates at the chosen thresholds."""
    b = report.binary
    if b is None:
        return
    print_line(f"detection of {b.positive!r} ({b.rule}) among {b.positives} positive and {b.negatives} negative images")
    metrics = [(name, getattr(b.rates, key)) for key, name in RATES.items()]
    metrics.append((f"average precision of {b.positive!r}", b.average_precision))
    print_table(["metric", "value", "95% interval", ""], [[name, *metric_cells(f)] for name, f in metrics])
    for point in b.operating_points:
        for text in _operating_point_lines(point, b.positive, fitted):
            print_line(text)
    if b.operating_points:
        print_line(f"  {_describe_storage(report)}")
    print_line()


def _describe_storage(report: EvaluationReport) -> str:
    """Return a note on whether the model now predicts labels with an operating point."""
    thresholds = report.thresholds
    points = [] if report.binary is None else report.binary.operating_points
    for point in points:
        if thresholds is not None and (point.threshold, point.rate) == (thresholds.positive_threshold, thresholds.rate):
            return f"`predict` uses the threshold for this {point.rate}"
    reached = any(point.threshold is not None for point in points)
    if reached and (len(points) > 1 or (thresholds is not None and thresholds.confidence is not None)):
        return "not stored for `predict`: only a single target is stored"
    return "not stored for `predict`"


def print_metrics(evaluation: TaskResult, split: str) -> None:
    """Print the size of an evaluation, its caveats, and a table of its metrics."""
    from sightline.metrics import describe_metric
    from sightline.report import sentences

    classes = len(evaluation.classes)
    loss = "not defined" if evaluation.loss is None else f"{evaluation.loss:.4f}"
    print_line(f"{plural(evaluation.count, 'image')}, {plural(classes, 'class', 'classes')}, loss {loss}")
    if untested := sentences.describe_untested(evaluation.untested_classes, classes, sentences.describe_split(split)):
        print_line(untested)
    for caution in sentences.list_cautions(evaluation.to_dict(), split):
        print_line(caution)
    if unreadable := describe_unreadable(evaluation.unreadable):
        print_line(unreadable)
    if evaluation.groups is not None and evaluation.groups > 1:  # one group has no intervals, as the notes say
        print_line(f"95% intervals are resampled by group ({plural(evaluation.groups, 'group')})")
    print_line()
    rows = [[describe_metric(name), *metric_cells(m, classes)] for name, m in evaluation.metrics.items()]
    print_table(["metric", "value", "95% interval", ""], rows)
    print_line()


def metric_cells(metric: Metric, classes: int = 0) -> list[str]:
    """Return the cells of a metric: its value, interval and notes; `classes` is the number of all classes."""
    value = "" if metric.value is None else f"{metric.value:.4f}"
    notes = [metric.note] if metric.note else []
    if metric.classes is not None and 0 < metric.classes < classes:
        notes.append(f"over {metric.classes:,} of {classes:,} classes")
    return [value, format_interval(metric.interval, 4), "; ".join(notes)]


def name_these(count: int) -> str:
    """Return a phrase for the evaluated images.

    >>> name_these(1), name_these(20)
    ('this image', 'these 20 images')
    """
    return "this image" if count == 1 else f"these {plural(count, 'image')}"


def format_number(value: float | None) -> str:
    """Return a number with three digits, or "" if it is undefined."""
    return "" if value is None else f"{value:.3f}"


def format_interval(interval: Interval | None, digits: int) -> str:
    """Return both limits of an interval, or "" without one."""
    return "" if interval is None else f"{interval.low:.{digits}f} to {interval.high:.{digits}f}"


def _operating_point_lines(point: OperatingPoint, positive: str, fitted: str) -> Iterator[str]:
    if point.threshold is None:
        yield f"{point.rate} {point.target:g}: {point.note}"
        return
    yield (
        f"{point.rate} {point.target:g}: predict {positive!r} where its probability is at least {point.threshold:.4f} "
        f"(chosen on {plural(point.count, 'validation image')})"
    )
    if point.note:
        yield f"  {point.note}"
    if point.rate_cost and point.relaxed_threshold is not None:
        other = "specificity" if point.rate == "sensitivity" else "sensitivity"
        yield (
            f"  being conservative costs {100 * point.rate_cost:.1f} points of {other} on validation; "
            "--no-conservative "
            f"takes {point.relaxed_threshold:.4f}"
        )
    if point.rates is None:
        yield f"  the threshold was chosen {fitted}"
        return
    rates = [(name, metric_cells(getattr(point.rates, key))) for key, name in RATES.items()]
    yield "  on these images: " + ", ".join(
        f"{name} {value or 'not defined'} ({ends or note})" for name, (value, ends, note) in rates
    )
    bound = "has no bound" if point.lower_bound is None else f"is at least {point.lower_bound:.4f} with 95% confidence"
    metric: Metric = getattr(point.rates, point.rate)
    verdict = describe_verdict(point.met, metric.interval, point.target)
    yield f"  target {verdict}: the {point.rate} {bound}"


def describe_verdict(met: bool | None, interval: Interval | None, target: float | None) -> str:
    """Return whether a rate reaches its target, by its lower bound, or, by its 95% interval, does not."""
    if met:
        return "met"
    return "not met" if interval and target and interval.high < target else "not shown to be met"


def _shift_lines(report: EvaluationReport) -> Iterator[str]:
    s = report.validation
    if s is None:
        return
    low, high = s.accuracy_difference_interval
    yield (
        f"{s.split}: accuracy {s.accuracy:.4f} on {plural(s.count, 'image')}, here "
        f"{100 * s.accuracy_difference:+.2f} points (95% interval {100 * low:+.2f} to {100 * high:+.2f}); "
        f"ECE {s.ece:.4f}, here "
        f"{s.ece_difference:+.4f} (p = {s.ece_p_value:.2g})"
    )
    from sightline.report import sentences

    if warning := sentences.describe_shift(s.to_dict(), report.split):
        yield f"warning: {warning}"


def list_calibration_lines(c: CalibrationReport) -> Iterator[str]:
    """Yield the expected calibration error before and after temperature scaling, and how reliable it is."""
    if c.ece is None:
        yield "calibration: not defined, since no pixel has a class"
        return
    after = ""
    if c.temperature is not None and c.ece_after is not None and not c.unchanged:
        after = f"; {c.ece_after:.4f} at temperature {c.temperature.value:.3f}, fitted on validation"
    ends = f" (95% interval {c.interval.low:.4f} to {c.interval.high:.4f})" if c.interval else ""
    yield f"calibration: ECE {c.ece:.4f}{ends} as deployed{after}"
    if c.interval_note:
        yield f"  {c.interval_note}"
    if c.note:
        yield f"  {c.note}"


def _selective_lines(report: EvaluationReport, fitted: str) -> Iterator[str]:
    yield f"risk-coverage: area {report.risk_coverage.aurc:.4f}"
    t = report.threshold
    if t is not None and t.confidence is None:
        yield f"  precision {t.target:g}: {t.note}"
    elif t is not None:
        yield (
            f"  precision {t.target:g}: confidence {t.confidence:.4f} covers {t.coverage:.1%} of {t.count} "
            f"validation images with precision {t.precision:.4f} (at least {t.lower_bound:.4f} with 95% confidence)"
        )
        if t.coverage_cost:
            yield f"  being conservative costs {t.coverage_cost:.1%} of coverage; --no-conservative recovers it"
        if t.note:
            yield f"  {t.note}"
    a = report.selective
    if a is not None:
        precision = ""
        if a.precision is not None:
            ends = format_interval(a.interval, 4) or "no interval: all images above it are in one group"
            precision = f" with precision {a.precision:.4f} ({ends})"
        has_sets = report.thresholds is not None and report.thresholds.conformal_quantile is not None
        sets = f"; returns a set for {a.set_fraction:.1%}" if has_sets else ""
        yield (
            f"  on {name_these(a.count)}: predicts a class for {a.class_fraction:.1%}{precision}{sets}; "
            f"abstains on {a.abstained_fraction:.1%}"
        )
        if a.met is not None and a.lower_bound is not None:
            bound = f"is at least {a.lower_bound:.4f} with 95% confidence"
            yield f"  target {a.target:g} {describe_verdict(a.met, a.interval, a.target)}: the precision {bound}"
        elif a.target is not None and a.lower_bound is not None:
            yield f"  the threshold was chosen {fitted}"


def _list_set_lines(report: EvaluationReport, fitted: str) -> Iterator[str]:
    s = report.set_coverage
    if s is None:
        return
    yield (
        f"  prediction sets for coverage {s.target:g}: contain the true class for {s.coverage:.4f} "
        f"({s.interval.low:.4f} to {s.interval.high:.4f}), {s.mean_size:.2f} classes on average, "
        f"{s.singleton_fraction:.1%} with one class"
    )
    if s.fitted:
        yield f"  the sets were fitted {fitted}"


def list_ood_lines(s: OODResult | None) -> Iterator[str]:
    """Yield how well out-of-distribution images are detected, if there were any."""
    if s is None:
        return
    distance = "" if s.distance_auroc is None else f", by feature distance {s.distance_auroc:.4f}"
    images = f"{plural(s.ood_count, 'image')} of {s.name}"
    yield f"out-of-distribution: {images} vs. {s.count} in-distribution: AUROC by energy {s.energy_auroc:.4f}{distance}"
    if s.note:
        yield f"  {s.note}"
    if s.flagged_fraction is not None:
        alarms = f"{s.false_alarm_rate:.1%} of the in-distribution images"
        yield f"  the model's limit flags {s.flagged_fraction:.1%} of them, and {alarms}"


def _slice_lines(report: EvaluationReport) -> Iterator[str]:
    worse = [s for s in report.slices if s.significantly_worse]
    if report.slices and not worse:
        yield f"slices: none of {len(report.slices)} is significantly worse than the rest"
    for s in worse:
        yield (
            f"significantly worse: {s.name}: accuracy {s.accuracy:.4f} ({s.interval.low:.4f} to {s.interval.high:.4f}) "
            f"on {plural(s.count, 'image')}, {s.rest_accuracy:.4f} on the rest"
        )
