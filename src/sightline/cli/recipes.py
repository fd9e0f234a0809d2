"""`sightline recipes`."""

from __future__ import annotations

from typing import Annotated

import typer

from sightline.cli.output import FormatOption, OutputFormat, print_json, print_table, print_text
from sightline.config import recipes as shipped


def recipes(
    name: Annotated[
        str | None, typer.Argument(help="Print this recipe's file, as a starting point for your own.")
    ] = None,
    output_format: FormatOption = OutputFormat.text,
) -> None:
    """List the recipes, or print one of them."""
    if name is not None:
        if output_format == OutputFormat.json:
            print_json({"name": name, "settings": shipped.load(name)})
        else:
            print_text(shipped.text(name))
    elif output_format == OutputFormat.json:
        print_json({"recipes": [{"name": n, "description": shipped.first_sentence(n)} for n in shipped.names()]})
    else:
        print_table(["recipe", "description"], [[n, shipped.first_sentence(n)] for n in shipped.names()])
