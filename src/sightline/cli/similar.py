"""`sightline similar`."""

from __future__ import annotations

from typing import Annotated

import typer

from sightline.cli.output import RawCsv, TableFormatOption, print_csv, print_json, print_line
from sightline.cli.predict import Model
from sightline.cli.sources import FileLimit
from sightline.escaping import printable
from sightline.progress import ProgressDisplay

COLUMNS = ("image", "rank", "path", "similarity", "error")


def similar(
    model: Model,
    image: Annotated[str, typer.Argument(help="The image to compare; also a folder or a glob of several.")],
    data: Annotated[
        str, typer.Argument(help="The images to search: a folder, a glob, or a file that `sightline embed` wrote.")
    ],
    top: Annotated[int, typer.Option(min=1, help="Number of similar images.")] = 5,
    set: FileLimit = None,  # noqa: A002  # the option's own name
    output_format: TableFormatOption = "text",
    raw_csv: RawCsv = False,
) -> None:
    """Find the images that are most similar to an image, by the cosine similarity of their embeddings.

    Exits with 1 if the image could not be read.
    """
    from sightline.api.loading import load

    classifier = load(model)
    with ProgressDisplay() as display:
        rows = classifier.similar(image, data, top=top, set=set or (), callback=display)
    if output_format == "csv":
        print_csv(COLUMNS, ([getattr(row, name) for name in COLUMNS] for row in rows), raw=raw_csv)
    elif output_format == "json":
        for row in rows:
            print_json(row.to_dict())
    else:
        several = len({row.image for row in rows}) > 1
        for row in rows:
            if several and row.rank <= 1:
                print_line((printable(row.image), "bold"))
            if row.error is not None:
                print_line(f"{printable(row.image)}  ", (row.error, "red"))
            else:
                print_line(f"{'  ' * several}{row.similarity:.4f}  {printable(str(row.path))}")
    failed = sum(row.error is not None for row in rows)
    if failed:
        raise typer.Exit(1)
