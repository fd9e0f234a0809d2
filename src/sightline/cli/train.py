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
    typer.Option(metavar="N|auto", help="Processes that train together, each started so; auto: the cluster's."),
]
Coordinator = Annotated[str | None, typer.Option(metavar="ADDRESS:PORT", help="Where host 0 waits for the others.")]
Rank = Annotated[int | None, typer.Option(help="Which of the hosts this is, from 0.")]


def train(
    data: Sources,
    recipe: Annotated[str, typer.Option(help="A recipe; `sightline recipes` lists them.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="The run directory; default runs/<recipe>-<data>-<n>.")] = None,
    config: Annotated[Path | None, typer.Option(help="A TOML file laid on the recipe.")] = None,
    set: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="One setting, as train.epochs=5.")] = None,  # noqa: A002
    model: Annotated[str | None, typer.Option(help="A network; `sightline models` lists them.")] = None,
    weights: Annotated[str | None, typer.Option(help="none, imagenet, auto, or a file.")] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the training images in all; the stages of a recipe share them.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per step.")] = None,
    seed: Annotated[int | None, typer.Option(help="Everything random derives from it.")] = None,
    patch: Annotated[
        str | None, typer.Option(metavar="PATCH.jsonl", help="Corrections of the data, as doctor --fix writes.")
    ] = None,
    column: Column = None,
    allow: Allow = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Keep no decoded pictures for the next run.")] = False,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Refuse operations that cannot be repeated bit for bit.")
    ] = False,
    devices: Annotated[
        str | None, typer.Option(metavar="N|all", help="Devices of this host that share each step; default 1.")
    ] = None,
    hosts: Hosts = None,
    coordinator: Coordinator = None,
    rank: Rank = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the run that --out holds.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Train a classifier on labelled pictures."""
    from sightline import workflow
    from sightline.hosts import wanted
    from sightline.report import summary

    named = {"model.name": model, "model.weights": weights}
    if devices is not None:
        named["device.count"] = "0" if devices == "all" else devices
    assignments = [f"{key}={value}" for key, value in named.items() if value is not None] + (set or [])
    if patch is not None:
        assignments.append(f"data.patch={jsonio.dumps(patch)}")  # quoted, lest a file called 7 were taken for a number
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
    elif result.run:  # which is host 0's alone
        show(result)
    check_bundle(result)


def check_bundle(result: TrainResult) -> None:
    """Exit with 1 where a run has no bundle, and say why."""
    if result.run and result.bundle is None:
        way = f"`sightline export {result.run} --format bundle` with a greater --tolerance writes a file"
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
    say(
        f"{result.model}, {result.parameters:,} parameters, {plural(result.epochs, 'epoch')} in {result.seconds:.0f} s "
        f"({result.images_per_second:,.0f} images/s)"
    )
    say(f"run        {result.run}")
    say(f"figures    {Path(result.run) / 'figures'}")


def _line(figures: PartFigures) -> str:
    return f"accuracy {figures.accuracy:.4f} on {plural(figures.count, 'image')}, loss {figures.loss:.4f}"
