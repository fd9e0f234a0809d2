"""`sightline resume`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from sightline.cli.output import Display, print_json
from sightline.cli.train import Coordinator, Hosts, Rank, check_bundle, show


def resume(
    run: Annotated[Path, typer.Argument(help="A run directory, not complete unless --epochs is given.")],
    data: Annotated[list[str] | None, typer.Argument(help="The same pictures, if they lie elsewhere now.")] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Extend a complete run to so many epochs in all, with its optimizer.")
    ] = None,
    hosts: Hosts = None,
    coordinator: Coordinator = None,
    rank: Rank = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Go on with a run that was stopped, killed or out of disk, to the weights that it would have had.

    A complete run goes on to more epochs with --epochs.
    """
    from sightline import workflow
    from sightline.hosts import wanted
    from sightline.report import summary

    with Display() as display:
        result = workflow.resume(
            run, data or None, epochs=epochs, hosts=wanted(hosts, coordinator, rank, os.environ), watcher=display
        )
    if json:
        print_json(summary.training(result))
    elif result.run:
        show(result)
    check_bundle(result)
