"""`sightline resume`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sightline.cli.output import FormatOption, print_json
from sightline.cli.train import Coordinator, CpusPerWorker, Engine, Hosts, Rank, RayAddress, check_bundle, print_result
from sightline.progress import ProgressDisplay


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
    engine: Engine = "local",
    num_workers: Annotated[
        int | None,
        typer.Option(help="With --engine ray: the number of workers; default: the number at the start of the run."),
    ] = None,
    cpus_per_worker: CpusPerWorker = None,
    ray_address: RayAddress = None,
    output_format: FormatOption = "text",
) -> None:
    """Resume an interrupted run; the final weights match those of an uninterrupted run bit for bit.

    With --epochs, train a complete run for more epochs.
    """
    from sightline.api.resuming import resume_run

    with ProgressDisplay() as display:
        result = resume_run(
            run, data or None, epochs=epochs, hosts=hosts, coordinator=coordinator, rank=rank, engine=engine,
            num_workers=num_workers, cpus_per_worker=cpus_per_worker, ray_address=ray_address, callback=display,
        )  # fmt: skip
    if output_format == "json":
        print_json(result.to_dict())
    elif result.run:
        print_result(result)
    check_bundle(result)
