"""`sightline evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from sightline.cli import evaluation_view, multi_label_view, segmentation_view
from sightline.cli.evaluation_view import format_interval, format_number, metric_cells
from sightline.cli.output import (
    MAX_ROWS,
    RawCsv,
    TableFormat,
    csv_format,
    print_csv,
    print_json,
    print_line,
    print_table,
)
from sightline.cli.sources import Column, DataSettings, DeviceOption, load_model
from sightline.cli.verbs import state_order
from sightline.data.types import OUT_OF_FOLD, describe_unreadable
from sightline.errors import plural
from sightline.evaluation.results import ClassMetrics, EvaluationResult, TaskResult
from sightline.progress import ProgressDisplay


def evaluate(
    model: Annotated[str, typer.Argument(help="A run, a bundle, its .zip or .onnx file, or an exported folder.")],
    data: Annotated[list[str] | None, typer.Argument(help="Labeled images; default: the run's own data.")] = None,
    split: Annotated[str | None, typer.Option(help="train, validation or test; default: test if there is one.")] = None,
    target_precision: Annotated[
        float | None,
        typer.Option(help="Abstain below the confidence that reaches this precision on validation, e.g. 0.99."),
    ] = None,
    conservative: Annotated[
        bool,
        typer.Option(
            "--conservative/--no-conservative",
            help="Choose thresholds that reach their targets on new images with 95% confidence.",
        ),
    ] = True,
    positive: Annotated[
        str | None, typer.Option(metavar="CLASS", help="The positive class of a two-class model, e.g. defect.")
    ] = None,
    target_sensitivity: Annotated[
        float | None, typer.Option(help="Choose the threshold that reaches this sensitivity on validation, e.g. 0.95.")
    ] = None,
    target_specificity: Annotated[
        float | None, typer.Option(help="Choose the threshold that reaches this specificity on validation, e.g. 0.95.")
    ] = None,
    target_recall: Annotated[
        float | None,
        typer.Option(help="With several labels, choose the threshold of each class that reaches this recall."),
    ] = None,
    target_fnr: Annotated[
        float | None,
        typer.Option(help="With several labels, conformal label sets that miss at most this fraction, e.g. 0.1."),
    ] = None,
    min_iou: Annotated[
        float | None,
        typer.Option(help="With masks, the minimum IoU of a correct mask for --target-precision.  [default: 0.5]"),
    ] = None,
    coverage: Annotated[
        float | None, typer.Option(help="Conformal prediction sets with this coverage, e.g. 0.95.")
    ] = None,
    reset_thresholds: Annotated[
        bool,
        typer.Option(
            "--reset-thresholds",
            help="Remove the targets of earlier evaluations, and use the thresholds from training.",
        ),
    ] = False,
    ood: Annotated[
        str | None, typer.Option(help="Out-of-distribution images; reports the AUROC of detecting them.")
    ] = None,
    find_label_issues: Annotated[
        Path | None,
        typer.Option(metavar="PATCH", help="Find labels that may be wrong, and write proposed fixes to this file."),
    ] = None,
    tta: Annotated[
        Literal["flip", "flip-shift"] | None,
        typer.Option(
            help="Test-time augmentation: average over views of each image; flip: the image and its mirror image (2x "
            "cost); flip-shift: also slightly shifted copies of both (6x cost)."
        ),
    ] = None,
    include_training: Annotated[
        bool, typer.Option("--include-training", help="Include images that the model was trained or validated on.")
    ] = False,
    allow_missing: Annotated[
        bool,
        typer.Option(
            "--allow-missing",
            help="Evaluate the remaining images if some are missing; the run keeps its stored evaluation.",
        ),
    ] = False,
    device: DeviceOption = None,
    column: Column = None,
    set: DataSettings = None,  # noqa: A002  # the option's own name
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Do not cache decoded images.")] = False,
    output_format: Annotated[TableFormat, csv_format("metric")] = "text",
    raw_csv: RawCsv = False,
) -> None:
    """Evaluate a classifier: metrics with intervals, calibration, abstention, slices, errors, label issues.

    Exits with 1 if no threshold reaches a target precision, sensitivity, specificity or recall.
    """
    from sightline.data.storage import holds_model

    swapped = not holds_model(Path(model)) and any(holds_model(Path(source)) for source in data or ())
    with (
        ProgressDisplay(quiet=output_format != "text") as display,
        state_order("evaluate", swapped=swapped, example="evaluate runs/cats labeled/"),
    ):
        loaded = load_model(model, device)
        evaluation = loaded.evaluate(
            data or None, split=split, target_precision=target_precision, conservative=conservative,
            positive=positive, target_sensitivity=target_sensitivity, target_specificity=target_specificity,
            target_recall=target_recall, target_fnr=target_fnr, min_iou=min_iou,
            reset_thresholds=reset_thresholds, coverage=coverage, ood=ood,
            find_label_issues=find_label_issues, tta=tta, include_training=include_training,
            allow_missing=allow_missing, column=column, set=set or (), cache=not no_cache, callback=display,
        )  # fmt: skip
    from sightline.evaluation.multi_label import MultiLabelReport
    from sightline.evaluation.segmentation import SegmentationReport

    report = evaluation.report
    targets = (target_precision, target_sensitivity, target_specificity, target_recall, target_fnr, coverage)
    fitted = evaluation_view.describe_fit(report, split, is_new=any(target is not None for target in targets))
    if output_format == "json":
        print_json(evaluation.to_dict())
    elif output_format == "csv":
        print_metrics_csv(report.evaluation, raw=raw_csv)
    elif isinstance(report, MultiLabelReport):
        multi_label_view.print_report(report, fitted)
    elif isinstance(report, SegmentationReport):
        segmentation_view.print_report(report, fitted)
        if loaded.tile:
            print_line(
                f"tiles: the model predicts in tiles, at the scale {loaded.tile:g}; these metrics are of whole images"
            )
    else:
        if tta is not None:
            print_line(f"{tta} test-time augmentation: mean over {evaluation.tta_views} views of each image")
        is_stored = report.split != "other" and report.evaluation.missing is None and tta is None
        folder = "validation" if report.split == OUT_OF_FOLD else report.split
        file = str(Path(model, "eval", folder, "metrics.json")) if is_stored else ""
        print_evaluation(
            report.evaluation,
            report.split,
            f"all classes are in {file}" if file else "--format json prints all classes",
        )
        evaluation_view.print_report(report, fitted)
    if output_format == "text" and evaluation.label_issues is not None:
        evaluation_view.print_label_issues(
            evaluation.label_issues,
            str(find_label_issues),
            evaluation.unchecked_classes or (),
            evaluation.label_agreement,
        )
        multi_label_view.print_label_issue_counts(evaluation.label_issue_counts or ())
    if not evaluation.targets_met:
        if evaluation.thresholds is not None and (target_precision or target_recall):
            advice = "--reset-thresholds restores those from training"
            print_line(f"these thresholds are saved with the model anyway; {advice}", stderr=True)
        raise typer.Exit(1)


def print_evaluation(evaluation: EvaluationResult, split: str, rest: str) -> None:
    """Print the metrics of an evaluation; `rest` says where to find the rows that a long table omits."""
    from sightline import metrics
    from sightline.report import sentences

    low, high = evaluation.accuracy_interval.low, evaluation.accuracy_interval.high
    print_line(
        f"accuracy {evaluation.accuracy:.4f} (95% interval {low:.4f} to {high:.4f}) on "
        f"{plural(evaluation.count, 'image')}, "
        f"loss {evaluation.loss:.4f}"
    )
    if untested := sentences.describe_untested(
        evaluation.untested_classes, len(evaluation.classes), sentences.describe_split(split)
    ):
        print_line(untested)
    for caution in sentences.list_cautions(evaluation.to_dict(), split):
        print_line(caution)
    if evaluation.groups is not None and evaluation.groups > 1:  # one group has no intervals, as the notes say
        print_line(f"95% intervals are resampled by group ({plural(evaluation.groups, 'group')})")
    print_line()
    others = [
        [metrics.describe_metric(name), *metric_cells(f, len(evaluation.classes))]
        for name, f in evaluation.metrics.items()
        if name != "top_1"  # same as the accuracy
    ]
    print_table(["metric", "value", "95% interval", ""], others)
    print_line()
    tested = [c for c in evaluation.per_class if c.support]
    columns = ["class", "precision", "95% interval", "recall", "95% interval", "F1", "images"]
    if len(tested) > MAX_ROWS:
        print_line("classes, lowest F1 first")
        tested.sort(key=lambda c: (c.f1 or 0.0, c.label))
    print_table(columns, [_row(c) for c in tested], right=["precision", "recall", "F1", "images"], rest=rest)
    if len(evaluation.classes) <= 12:  # wider tables do not fit a terminal
        print_line()
        print_line("confusion matrix, true classes in rows")
        counts = [
            [label, *map(str, row)]
            for label, row in zip(evaluation.classes, evaluation.confusion.tolist(), strict=True)
        ]
        print_table(["", *evaluation.classes], counts, right=evaluation.classes)
    if pairs := metrics.most_confused_pairs(evaluation.confusion, 3):
        pair_texts = [
            f"{evaluation.classes[i]} predicted as {evaluation.classes[j]} ({count})" for i, j, count in pairs
        ]
        print_line()
        print_line(f"most confused: {', '.join(pair_texts)}")
    if evaluation.unreadable:
        print_line()
        print_line(describe_unreadable(evaluation.unreadable))


def print_metrics_csv(evaluation: TaskResult, *, raw: bool) -> None:
    """Print one row of CSV per metric, with the limits of its 95% interval and the number of images."""
    rows = [
        [name, metric.value, *(metric.interval or (None, None)), evaluation.count, metric.note]
        for name, metric in evaluation.metrics.items()
    ]
    print_csv(["metric", "value", "low", "high", "count", "note"], rows, raw=raw)


def _row(c: ClassMetrics) -> list[str]:
    precision, recall = format_interval(c.precision_interval, 3), format_interval(c.recall_interval, 3)
    return [
        c.label,
        format_number(c.precision),
        precision,
        format_number(c.recall),
        recall,
        format_number(c.f1),
        str(c.support),
    ]
