"""`sightline evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sightline.cli import judged
from sightline.cli.cautions import cautions
from sightline.cli.output import Display, console, escape, print_json, table
from sightline.errors import UsageError
from sightline.records import Evaluation, Figure


def evaluate(
    model: Annotated[str, typer.Argument(help="A run, a bundle, its .zip or .onnx file, or an exported folder.")],
    data: Annotated[list[str] | None, typer.Argument(help="Labelled pictures; default: the run's own.")] = None,
    split: Annotated[
        str | None, typer.Option(help="train, validation or test; default: test where there is one.")
    ] = None,
    target_precision: Annotated[
        float | None,
        typer.Option(help="Answer only above a confidence with this precision on validation, such as 0.99."),
    ] = None,
    conservative: Annotated[
        bool,
        typer.Option(
            "--conservative/--no-conservative",
            help="Choose thresholds that reach their target on new images too, with 95% confidence.",
        ),
    ] = True,
    coverage: Annotated[
        float | None, typer.Option(help="Answer with sets of classes that hold the truth this often, such as 0.9.")
    ] = None,
    ood: Annotated[
        str | None, typer.Option(help="Pictures of something else: how well are they told from these?")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(metavar="PATCH", help="Look for wrong labels, and write corrections to this file.")
    ] = None,
    mirror: Annotated[
        bool, typer.Option("--mirror", help="Judge the mean over each picture and its mirror image: twice the work.")
    ] = False,
    include_training: Annotated[
        bool, typer.Option("--include-training", help="Take in images that the model was trained or validated on.")
    ] = False,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Evaluate what is left of the run's images; the run keeps its own.")
    ] = False,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Keep no decoded pictures for the next time.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
) -> None:
    """Judge a classifier: figures with intervals, calibration, when to abstain, mistakes, wrong labels.

    Exits with 1 if no confidence reaches the target precision.
    """
    from sightline import workflow
    from sightline.evaluation import labels as label_issues
    from sightline.evaluation.judgement import Wanted
    from sightline.report import judgement, summary
    from sightline.workflow.judging import Admit, check_labels, judge

    if mirror and (target_precision is not None or coverage is not None or labels is not None):
        raise UsageError("--mirror judges only: thresholds and labels are found from single pictures, so leave it out.")
    if labels is not None:
        label_issues.check_packages()  # before the evaluation, not after it
    with Display(quiet=json) as display:
        part = workflow.part_name(split)
        classifier = workflow.load(model)
        if mirror:
            classifier = classifier.mirrored()
        wanted = Wanted(target_precision, coverage, conservative)
        found = judge(
            classifier, data or None, split=part, wanted=wanted, strange=ood,
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
            console().print("mean over two views of each picture, itself and its mirror image")
        show(found.evaluation)
        judged.show(found)
        if suspects is not None:
            judged.show_suspects(suspects, str(labels))
    if found.threshold is not None and found.threshold.confidence is None:
        raise typer.Exit(1)


def show(found: Evaluation) -> None:
    """Print the figures of an evaluation."""
    from sightline import metrics

    out = console()
    low, high = found.accuracy_interval.low, found.accuracy_interval.high
    out.print(
        f"accuracy {found.accuracy:.4f} (95% interval {low:.4f} to {high:.4f}) on {found.count} pictures, "
        f"loss {found.loss:.4f}"
    )
    for line in cautions(found):
        out.print(escape(line))
    out.print()
    others = [[name.replace("_", " "), *_words(f)] for name, f in found.figures.items() if name != "top_1"]
    table(["figure", "value", "95% interval"], others)
    out.print()
    rows = [[c.label, f"{c.precision:.3f}", f"{c.recall:.3f}", f"{c.f1:.3f}", str(c.support)] for c in found.per_class]
    columns = ["class", "precision", "recall", "F1", "pictures"]
    table(columns, rows, right=columns[1:])
    if len(found.classes) <= 12:  # wider tables cannot be read on a terminal
        out.print("\nconfusion, true classes in rows")
        counts = [[label, *map(str, row)] for label, row in zip(found.classes, found.confusion.tolist(), strict=True)]
        table(["", *map(escape, found.classes)], counts, right=found.classes)
    if pairs := metrics.worst_pairs(found.confusion, 3):
        named = [f"{found.classes[i]} called {found.classes[j]} ({count})" for i, j, count in pairs]
        out.print(f"\nmost confused: {escape(', '.join(named))}")
    if found.rejects:
        first = found.rejects[0]
        out.print(
            f"\n{len(found.rejects)} files could not be read, such as {escape(first.path)}: {escape(first.reason)}"
        )


def _words(figure: Figure) -> list[str]:
    ends = figure.interval
    value = "" if figure.value is None else f"{figure.value:.4f}"
    return [value, f"{ends.low:.4f} to {ends.high:.4f}" if ends else figure.note]
