"""`sightline watch`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sightline.cli.output import Cell, RawCsv, TableFormat, csv_format, print_csv, print_json, print_line, print_table
from sightline.cli.predict import Model
from sightline.cli.sources import FileLimit
from sightline.cli.verbs import state_order
from sightline.progress import ProgressDisplay

if TYPE_CHECKING:  # annotations only: --help must not import NumPy
    from sightline.api.watching import WatchReport

COLUMNS = ("rank", "id", "time", "label", "probability")


def watch(
    log: Annotated[Path, typer.Argument(help="The log that `sightline serve --log-features` writes.")],
    model: Model,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Labeled images that the model was not trained on, to compare with; default: the sample of validation "
            "images in its bundle.",
        ),
    ] = None,
    level: Annotated[
        float, typer.Option(help="Maximum probability of a false alarm, however often the log is checked.")
    ] = 0.05,
    top: Annotated[int, typer.Option(min=0, help="Number of images to label first.")] = 10,
    figure: Annotated[Path | None, typer.Option(help="Plot the evidence for drift to this PNG file.")] = None,
    set: FileLimit = None,  # noqa: A002  # the option's own name
    output_format: Annotated[TableFormat, csv_format("image to label first")] = "text",
    raw_csv: RawCsv = False,
) -> None:
    """Check whether the images of a server have drifted from the validation images.

    Also estimates the accuracy, the IoU of masks or the F1 of several labels without labels, and lists the images to
    label first. Exits with 1 if they have drifted.
    """
    from sightline.api.loading import is_model, load

    with state_order("watch", swapped=is_model(log)):
        classifier = load(model)
    with ProgressDisplay(quiet=output_format != "text") as display:
        report = classifier.watch(
            log, reference=reference, level=level, top=top, figure=figure, set=set or (), callback=display
        )
    if output_format == "json":
        print_json(report.to_dict())
    elif output_format == "csv":
        columns = list(report.rows[0]) if report.rows else COLUMNS
        print_csv(columns, [[row[name] for name in columns] for row in report.rows], raw=raw_csv)
    else:
        print_report(report)
    if report.drift.alarm is not None:
        raise typer.Exit(1)


def print_report(report: WatchReport) -> None:
    """Print the conclusions from the log, then the images to label as a table."""
    for name, text in report.list_sentences():
        print_line(f"{name:<11}{text}")
    if report.figure is not None:
        print_line(f"{'figure':<11}{report.figure}")
    if report.label_first:
        print_line()
        rows: list[list[Cell]] = [
            [
                image.id, image.time, image.label, f"{image.probability:.4f}",
                *([] if image.quality is None else [f"{image.quality:.4f}"]),
            ]
            for image in report.label_first
        ]  # fmt: skip
        header = ["label first", "time", "predicted", "probability", "quality"][: len(rows[0])]
        print_table(header, rows, right=["probability", "quality"])
