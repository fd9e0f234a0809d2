"""`sightline evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sightline.cli import judged
from sightline.cli.output import LONGEST, Display, print_json, say, table
from sightline.cli.sources import Column, Read, listed
from sightline.errors import UsageError, plural
from sightline.records import ClassFigures, Evaluation, Figure, Interval


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
        float | None,
        typer.Option(help="Choose the threshold that reaches this sensitivity on validation, e.g. 0.95."),
    ] = None,
    target_specificity: Annotated[
        float | None, typer.Option(help="Choose the threshold that reaches this specificity on validation, e.g. 0.95.")
    ] = None,
    coverage: Annotated[
        float | None, typer.Option(help="Conformal prediction sets with this coverage, e.g. 0.95.")
    ] = None,
    ood: Annotated[
        str | None, typer.Option(help="Out-of-distribution images; reports the AUROC of detecting them.")
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(metavar="PATCH", help="Find likely label errors, and write proposed fixes to this file."),
    ] = None,
    mirror: Annotated[
        bool,
        typer.Option(
            "--mirror", help="Test-time augmentation: average over each image and its mirror image (2x cost)."
        ),
    ] = False,
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
    column: Column = None,
    set: Read = None,  # noqa: A002  # the option's own name
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Do not cache decoded images.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the metrics as one JSON object.")] = False,
) -> None:
    """Evaluate a classifier: metrics with intervals, calibration, abstention, slices, errors, label issues.

    Exits with 1 if no threshold reaches a target precision, sensitivity or specificity.
    """
    from sightline import workflow
    from sightline.evaluation import labels as label_issues
    from sightline.evaluation.judgement import Wanted
    from sightline.report import judgement, summary
    from sightline.workflow.judging import Admit, check_labels, judge

    targets = (target_precision, coverage, target_sensitivity, target_specificity)
    if mirror and (labels is not None or any(target is not None for target in targets)):
        raise UsageError(
            "--mirror only evaluates: thresholds and label issues are computed from single images, so leave it out."
        )
    if labels is not None:
        label_issues.check_packages()  # before the evaluation, not after it
    with Display(quiet=json) as display:
        part = workflow.part_name(split)
        classifier = workflow.load(model)
        if mirror:
            classifier = classifier.mirrored()
        wanted = Wanted(
            target_precision, coverage, conservative, positive or "", target_sensitivity, target_specificity
        )
        found = judge(
            classifier, listed(data, column, set), split=part, wanted=wanted, strange=ood,
            admit=Admit(include_training, allow_missing), cache=not no_cache, progress=display.progress,
        )  # fmt: skip
        suspects = None
        if labels is not None:
            suspects = check_labels(
                classifier, labels, allow_missing=allow_missing, cache=not no_cache, progress=display.progress
            )  # fmt: skip
    if json:
        wrong = None if suspects is None else [s.to_patch() for s in suspects]
        print_json(
            summary.evaluation(found.evaluation) | judgement.judgement(found) | {"labels": wrong, "views": 1 + mirror}
        )
    else:
        if mirror:
            say("mean over two views of each image: itself and its mirror image")
        kept = found.part != "given" and found.evaluation.missing is None and not mirror
        file = str(classifier.run.path / "eval" / found.part / "metrics.json") if kept and classifier.run else ""
        show(found.evaluation, found.part, f"all classes are in {file}" if file else "--json prints all classes")
        judged.show(found)
        if suspects is not None:
            judged.show_suspects(suspects, str(labels))
    points = () if found.binary is None else found.binary.operating_points
    if (found.threshold and found.threshold.confidence is None) or any(p.threshold is None for p in points):
        raise typer.Exit(1)


def show(found: Evaluation, part: str, rest: str) -> None:
    """Print the metrics of an evaluation; `rest` says where to find the rows that a long table omits."""
    from sightline import metrics
    from sightline.report import sentences, summary

    low, high = found.accuracy_interval.low, found.accuracy_interval.high
    say(
        f"accuracy {found.accuracy:.4f} (95% interval {low:.4f} to {high:.4f}) on {plural(found.count, 'image')}, "
        f"loss {found.loss:.4f}"
    )
    if missing := sentences.untested(found.untested, len(found.classes), sentences.split_name(part)):
        say(missing)
    for caution in sentences.cautions(summary.evaluation(found)):
        say(caution)
    say()
    others = [[name.replace("_", " "), *_words(f, len(found.classes))] for name, f in found.figures.items()]
    table(["metric", "value", "95% interval", ""], others[1:])  # the first is accuracy
    say()
    tested = [c for c in found.per_class if c.support]
    columns = ["class", "precision", "95% interval", "recall", "95% interval", "F1", "images"]
    if len(tested) > LONGEST:
        say("classes, lowest F1 first")
        tested.sort(key=lambda c: (c.f1 or 0.0, c.label))
    table(columns, [_row(c) for c in tested], right=["precision", "recall", "F1", "images"], rest=rest)
    if len(found.classes) <= 12:  # a wider table does not fit a terminal
        say()
        say("confusion matrix, true classes in rows")
        counts = [[label, *map(str, row)] for label, row in zip(found.classes, found.confusion.tolist(), strict=True)]
        table(["", *found.classes], counts, right=found.classes)
    if pairs := metrics.worst_pairs(found.confusion, 3):
        named = [f"{found.classes[i]} predicted as {found.classes[j]} ({count})" for i, j, count in pairs]
        say()
        say(f"most confused: {', '.join(named)}")
    if found.rejects:
        first = found.rejects[0]
        say()
        say(f"{plural(len(found.rejects), 'file')} could not be read, e.g. {first.path}: {first.reason}")


def _row(c: ClassFigures) -> list[str]:
    precision, recall = _ends(c.precision_interval, 3), _ends(c.recall_interval, 3)
    return [c.label, _number(c.precision), precision, _number(c.recall), recall, _number(c.f1), str(c.support)]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _ends(ends: Interval | None, digits: int) -> str:
    return "" if ends is None else f"{ends.low:.{digits}f} to {ends.high:.{digits}f}"


def _words(figure: Figure, classes: int) -> list[str]:
    value = "" if figure.value is None else f"{figure.value:.4f}"
    notes = [figure.note] if figure.note else []
    if figure.classes is not None and 0 < figure.classes < classes:
        notes.append(f"over {figure.classes:,} of {classes:,} classes")
    return [value, _ends(figure.interval, 4), "; ".join(notes)]
