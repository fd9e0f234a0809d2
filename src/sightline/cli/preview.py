"""`sightline preview`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from sightline.cli.output import FormatOption, print_json, print_line
from sightline.cli.sources import Column, Sources, set_option
from sightline.progress import ProgressDisplay


def preview(
    data: Sources,
    out: Annotated[Path | None, typer.Option(help="The PNG file; default <name>-samples.png.")] = None,
    augment: Annotated[
        bool, typer.Option("--augment", help="Show each image with five augmented versions of it.")
    ] = False,
    recipe: Annotated[str | None, typer.Option(help="The recipe whose augmentation to show; needs --augment.")] = None,
    set: Annotated[  # noqa: A002
        list[str] | None, set_option("one setting, e.g. data.class_level=2 or, with --augment, augment.rotation=20")
    ] = None,
    column: Column = None,
    count: Annotated[
        int | None, typer.Option(min=1, max=100, help="Number of images; default 10, or 4 with --augment.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random selection.")] = 0,
    output_format: FormatOption = "text",
) -> None:
    """Draw a labeled grid of images, original or augmented as in training."""
    from sightline.api.dataset import Dataset

    with ProgressDisplay(quiet=output_format == "json") as display:
        result = Dataset(data).preview(
            out, augment=augment, recipe=recipe, count=count, seed=seed, column=column, set=set or (), callback=display
        )
    if output_format == "json":
        print_json(asdict(result))
    else:
        print_line(result.figure)
