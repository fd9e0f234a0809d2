"""`sightline learning-curve`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sightline.cli.output import Cell, RawCsv, TableFormat, csv_format, print_csv, print_json, print_line, print_table
from sightline.cli.sources import Allow, Column, Sources, set_option
from sightline.progress import ProgressDisplay

if TYPE_CHECKING:  # annotations only: --help must not import NumPy
    from sightline.api.learning_curve import LearningCurveReport


def learning_curve(
    data: Sources,
    more: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            help="Predict the gain from this number of additional labels (images, if they have several labels); "
            "repeatable; default: 25% and 100% of the current number.",
        ),
    ] = None,
    recipe: Annotated[
        str, typer.Option(help="The recipe whose pretrained network computes the features.")
    ] = "transfer",
    figure: Annotated[Path | None, typer.Option(help="Plot the curve to this PNG file.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random subsets.")] = 0,
    patch: Annotated[str | None, typer.Option(metavar="PATCH.jsonl", help="Apply these data fixes first.")] = None,
    column: Column = None,
    allow: Allow = None,
    set: Annotated[list[str] | None, set_option("one setting, e.g. split.group=folder")] = None,  # noqa: A002
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Do not cache decoded images and features.")] = False,
    output_format: Annotated[TableFormat, csv_format("measured or predicted point")] = "text",
    raw_csv: RawCsv = False,
) -> None:
    """Measure the accuracy against the number of labels, and predict the gain from more labels."""
    from sightline.api.learning_curve import learning_curve as measure

    with ProgressDisplay(quiet=output_format != "text") as display:
        report = measure(
            data, more=more or (), recipe=recipe, figure=figure, seed=seed, patch=patch, column=column,
            allow=allow or (), set=set or (), cache=not no_cache, callback=display,
        )  # fmt: skip
    if output_format == "json":
        print_json(report.to_dict())
    elif output_format == "csv":
        names = list(dict.fromkeys(name for row in report.rows for name in row))
        columns = [*names, *(name for name in ("gain", "gain_low", "gain_high") if name not in names)]
        print_csv(columns, [[row.get(name) for name in columns] for row in report.rows], raw=raw_csv)
    else:
        print_curve(report)


def print_curve(report: LearningCurveReport) -> None:
    """Print the measured points as a table, then the predicted gain from more labels."""
    curve = report.curve
    columns = ["labels", "per class", "accuracy", "95% interval"]
    rows: list[list[Cell]] = [
        [
            f"{point.labels:,}", f"{point.labels / curve.num_classes:,.0f}", f"{point.value:.4f}",
            f"{point.interval.low:.4f} to {point.interval.high:.4f}",
        ]
        for point in curve.points
    ]  # fmt: skip
    if report.has_several_labels:  # the labels do not add up to the number of images
        columns = ["images", "mean average precision", "95% interval"]
        rows = [[row[0], *row[2:]] for row in rows]
    print_table(columns, rows, right=columns[:-1])
    print_line()
    for sentence in report.list_sentences():
        print_line(sentence)
    if report.figure is not None:
        print_line(f"figure     {report.figure}")
