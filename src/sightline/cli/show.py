"""`sightline show`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from sightline.cli.output import Display, print_json, say
from sightline.cli.sources import Column, Sources, data_assignments


def show(
    data: Sources,
    out: Annotated[Path | None, typer.Option(help="The PNG file; default <name>-samples.png here.")] = None,
    augment: Annotated[bool, typer.Option("--augment", help="Each picture, and five versions of it.")] = False,
    recipe: Annotated[str | None, typer.Option(help="With --augment: the recipe whose changes to show.")] = None,
    set: Annotated[  # noqa: A002
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE", help="One setting, as data.class_level=2; with --augment, augment.rotation=20."
        ),
    ] = None,
    column: Column = None,
    count: Annotated[int | None, typer.Option(min=1, max=100, help="So many pictures; default 10, or 4.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Another one shows other pictures.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Draw a labelled grid of pictures, as they are or as training would change them."""
    from sightline.workflow.show import show as draw

    with Display(quiet=json) as display:
        shown = draw(
            data, out=out, count=count, seed=seed, augmented=augment, recipe=recipe,
            set=[*(set or ()), *data_assignments(column)], watcher=display,
        )  # fmt: skip
    if json:
        print_json(asdict(shown))
    else:
        say(shown.figure)
