"""`sightline recipes`."""

from __future__ import annotations

from typing import Annotated

import typer

from sightline.cli.output import RawCsv, TableFormatOption, print_csv, print_json, print_table, print_text
from sightline.config import recipes as shipped
from sightline.errors import UsageError


def recipes(
    name: Annotated[
        str | None, typer.Argument(help="Print this recipe's file, as a starting point for your own.")
    ] = None,
    output_format: TableFormatOption = "text",
    raw_csv: RawCsv = False,
) -> None:
    """List the recipes, or print one of them."""
    if name is not None:
        if output_format == "json":
            print_json({"name": name, "settings": shipped.load(name)})
        elif output_format == "csv":
            raise UsageError("--format csv lists the recipes: leave out the name, or use --format json or text.")
        else:
            print_text(shipped.text(name))
        return
    rows = [[n, shipped.first_sentence(n)] for n in shipped.names()]
    if output_format == "json":
        print_json({"recipes": [{"name": n, "description": description} for n, description in rows]})
    elif output_format == "csv":
        print_csv(["name", "description"], rows, raw=raw_csv)
    else:
        print_table(["recipe", "description"], rows)
