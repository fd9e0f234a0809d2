"""`sightline resume`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from sightline.cli.output import FormatOption, OutputFormat, ProgressDisplay, print_json
from sightline.cli.train import Coordinator, Hosts, Rank, check_bundle, print_result


def resume(
    run: Annotated[Path, typer.Argument(help="An interrupted run; with --epochs, a complete one.")],
    data: Annotated[list[str] | None, typer.Argument(help="The same images, if they have moved.")] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            min=1, help="Train a complete run further, to this total number of epochs, with its optimizer state."
        ),
    ] = None,
    hosts: Hosts = None,
    coordinator: Coordinator = None,
    rank: Rank = None,
    output_format: FormatOption = OutputFormat.text,
) -> None:
    """Resume an interrupted run; the final weights match those of an uninterrupted run bit for bit.

    With --epochs, train a complete run for more epochs.
    """
    from sightline import api
    from sightline.distributed.cluster import resolve_cluster

    with ProgressDisplay() as display:
        result = api.resume(
            run,
            data or None,
            epochs=epochs,
            hosts=resolve_cluster(hosts, coordinator, rank, os.environ),
            callback=display,
        )
    if output_format == OutputFormat.json:
        print_json(result.to_dict())
    elif result.run:
        print_result(result)
    check_bundle(result)
