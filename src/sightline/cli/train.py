"""`sightline train`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from sightline import jsonio
from sightline.cli.output import Display, complain, print_json, say
from sightline.cli.sources import Allow, Column, Sources, data_assignments
from sightline.errors import plural
from sightline.records import PartFigures, TrainResult

Hosts = Annotated[
    str | None,
    typer.Option(
        metavar="N|auto",
        help="Number of processes that train together, each started with this command; auto: from the cluster.",
    ),
]
Coordinator = Annotated[
    str | None, typer.Option(metavar="ADDRESS:PORT", help="The address at which host 0 waits for the others.")
]
Rank = Annotated[int | None, typer.Option(help="The rank of this host, from 0.")]


def train(
    data: Sources,
    recipe: Annotated[str, typer.Option(help="The recipe; `sightline recipes` lists them.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="The run directory; default runs/<recipe>-<data>-<n>.")] = None,
    config: Annotated[Path | None, typer.Option(help="A TOML file of settings that override the recipe's.")] = None,
    set: Annotated[  # noqa: A002
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Set one setting, e.g. train.epochs=5; repeatable.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The network; `sightline models` lists them.")] = None,
    weights: Annotated[str | None, typer.Option(help="Initial weights: none, imagenet, auto, or a file.")] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Total number of epochs, divided among the stages of the recipe.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per batch.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of all random numbers.")] = None,
    patch: Annotated[
        str | None,
        typer.Option(metavar="PATCH.jsonl", help="Apply the data fixes in this file, as written by doctor --fix."),
    ] = None,
    column: Column = None,
    allow: Allow = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Do not cache decoded images.")] = False,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Fail on nondeterministic operations.")
    ] = False,
    devices: Annotated[
        str | None, typer.Option(metavar="N|all", help="Number of devices of this host to train on; default 1.")
    ] = None,
    hosts: Hosts = None,
    coordinator: Coordinator = None,
    rank: Rank = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the existing run at --out.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Train a classifier on labeled images."""
    from sightline import workflow
    from sightline.hosts import wanted
    from sightline.report import summary

    named = {"model.name": model, "model.weights": weights}
    if devices is not None:
        named["device.count"] = "0" if devices == "all" else devices
    assignments = [f"{key}={value}" for key, value in named.items() if value is not None] + (set or [])
    if patch is not None:
        assignments.append(
            f"data.patch={jsonio.dumps(patch)}"
        )  # quoted, so that a file named 7 is not taken for a number
    assignments += data_assignments(column, allow)
    if no_cache:
        assignments.append("data.cache=false")
    if deterministic:
        assignments.append("device.deterministic=true")
    with Display() as display:
        result = workflow.train(
            data, recipe=recipe, config=config, set=assignments, epochs=epochs, batch_size=batch_size, seed=seed,
            out=out, force=force, watcher=display, hosts=wanted(hosts, coordinator, rank, os.environ),
        )  # fmt: skip
    if json:
        print_json(summary.training(result))
    elif result.run:  # only host 0 has one
        show(result)
    check_bundle(result)


def check_bundle(result: TrainResult) -> None:
    """Exit with 1 if the run has no bundle, and print why."""
    if result.run and result.bundle is None:
        way = f"To write one anyway, use `sightline export {result.run} --format bundle` with a larger --tolerance"
        complain(f"{result.run} has no bundle: {result.bundle_reason}. {way}.")
        raise typer.Exit(1)


def show(result: TrainResult) -> None:
    """Print the outcome of a training run."""
    from sightline.report import sentences

    for name, figures in (("validation", result.validation), ("test", result.test)):
        if figures is not None:
            say(f"{name:<11}{_line(figures)}")
            if leaked := sentences.leaked(result.details.get("leaked", {}).get(name)):
                say(f"           {leaked}")
            names = result.details.get("untested_classes", {}).get(name, [])
            if missing := sentences.untested(names, len(result.classes), f"the {name} split"):
                say(f"           {missing}")
    temperature = result.details.get("temperature", 1.0)
    if temperature != 1:
        say(f"           losses after calibration (temperature {temperature:.3f}); val_loss of an epoch is before it")
    say(
        f"{result.model}, {result.parameters:,} parameters, {plural(result.epochs, 'epoch')} in {result.seconds:.0f} s "
        f"({result.images_per_second:,.0f} images/s)"
    )
    say(f"run        {result.run}")
    say(f"figures    {Path(result.run) / 'figures'}")


def _line(figures: PartFigures) -> str:
    return f"accuracy {figures.accuracy:.4f} on {plural(figures.count, 'image')}, loss {figures.loss:.4f}"
