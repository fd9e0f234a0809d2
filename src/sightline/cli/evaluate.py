"""`sightline evaluate`."""

from __future__ import annotations

from typing import Annotated

import typer

from sightline.cli.output import Display, console, escape, print_json, table
from sightline.records import Evaluation


def evaluate(
    model: Annotated[str, typer.Argument(help="A run directory.")],
    data: Annotated[list[str] | None, typer.Argument(help="Labelled pictures; default: the run's own.")] = None,
    split: Annotated[
        str | None, typer.Option(help="train, validation or test; default: test where there is one.")
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Keep no decoded pictures for the next time.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
) -> None:
    """Judge a classifier on labelled pictures: accuracy with its interval, figures per class, confusion."""
    from sightline import workflow
    from sightline.report import summary

    with Display(quiet=json) as display:
        classifier = workflow.load(model)
        part = workflow.part_name(split)
        found = classifier.evaluate(data or None, split=part, cache=not no_cache, progress=display.progress)
    if json:
        print_json(summary.evaluation(found))
    else:
        show(found)


def show(found: Evaluation) -> None:
    """Print the figures of an evaluation."""
    out = console()
    low, high = found.accuracy_interval.low, found.accuracy_interval.high
    out.print(
        f"accuracy {found.accuracy:.4f} (95% interval {low:.4f} to {high:.4f}) on {found.count} pictures, "
        f"loss {found.loss:.4f}\n"
    )
    rows = [[c.label, f"{c.precision:.3f}", f"{c.recall:.3f}", f"{c.f1:.3f}", str(c.support)] for c in found.per_class]
    columns = ["class", "precision", "recall", "F1", "pictures"]
    table(columns, rows, right=columns[1:])
    if len(found.classes) <= 12:  # wider tables cannot be read on a terminal
        out.print("\nconfusion, true classes in rows")
        counts = [[label, *map(str, row)] for label, row in zip(found.classes, found.confusion.tolist(), strict=True)]
        table(["", *map(escape, found.classes)], counts, right=found.classes)
    if found.rejects:
        first = found.rejects[0]
        out.print(
            f"\n{len(found.rejects)} files could not be read, such as {escape(first.path)}: {escape(first.reason)}"
        )
