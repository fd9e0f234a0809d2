"""`sightline train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sightline.cli.output import FormatOption, print_error, print_json, print_line
from sightline.cli.sources import Allow, Column, Sources, set_option
from sightline.config.durations import format_duration
from sightline.data.types import OUT_OF_FOLD
from sightline.errors import plural
from sightline.progress import ProgressDisplay
from sightline.training.result import TrainResult, format_value

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
Engine = Annotated[
    str, typer.Option(metavar="local|ray", help="Where to train: in this process, or on the workers of a Ray cluster.")
]
NumWorkers = Annotated[
    int | None, typer.Option(help="With --engine ray: the number of workers, which train together; default 1.")
]
CpusPerWorker = Annotated[
    int | None, typer.Option(help="With --engine ray: the number of CPUs that each worker reserves; default 1.")
]
RayAddress = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT|auto", help="With --engine ray: the cluster; default: one on this machine only."),
]


def train(
    data: Sources,
    recipe: Annotated[str, typer.Option(help="The recipe; `sightline recipes` lists them.")] = "auto",
    effort: Annotated[
        str | None,
        typer.Option(
            metavar="fast|balanced|best",
            help="Training time to spend on accuracy, with a transfer recipe; default balanced.",
        ),
    ] = None,
    time_limit: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="Finish within this time, e.g. 10m, 90s or 1h30m: epochs that do not fit are skipped.",
        ),
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(
            min=2,
            max=20,
            metavar="K",
            help="Cross-validate with this many folds: predict each image without having trained on it, then train on "
            "all of them.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run directory; default runs/<recipe>-<data>-<n>.")] = None,
    config: Annotated[Path | None, typer.Option(help="A TOML file of settings that override the recipe's.")] = None,
    set: Annotated[list[str] | None, set_option("one setting, e.g. train.epochs=5")] = None,  # noqa: A002
    model: Annotated[str | None, typer.Option(help="The network; `sightline models` lists them.")] = None,
    weights: Annotated[str | None, typer.Option(help="Initial weights: none, imagenet, auto, or a file.")] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Total number of epochs, divided among the stages of the recipe.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per batch.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Learning rate of the optimizer; stages with their own keep it.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of all random numbers.")] = None,
    patch: Annotated[
        str | None,
        typer.Option(
            metavar="PATCH.jsonl", help="Apply the data fixes in this file, as written by doctor --write-fixes."
        ),
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
    track: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Also write metrics to tensorboard (the default; files in the run), mlflow or wandb; repeatable.",
        ),
    ] = None,
    hosts: Hosts = None,
    coordinator: Coordinator = None,
    rank: Rank = None,
    engine: Engine = "local",
    num_workers: NumWorkers = None,
    cpus_per_worker: CpusPerWorker = None,
    ray_address: RayAddress = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the existing run at --out.")] = False,
    output_format: FormatOption = "text",
) -> None:
    """Train a classifier on labeled images."""
    from sightline.api.run import train as train_run

    with ProgressDisplay() as display:
        result = train_run(
            data, recipe=recipe, effort=effort, time_limit=time_limit, folds=folds, out=out, config=config,
            set=set or (),
            model=model, weights=weights, epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, seed=seed,
            patch=patch, column=column, allow=allow or (), cache=not no_cache, deterministic=deterministic,
            devices=devices, track=track, hosts=hosts, coordinator=coordinator, rank=rank,
            engine=engine, num_workers=num_workers, cpus_per_worker=cpus_per_worker, ray_address=ray_address,
            force=force, callback=display,
        ).result  # fmt: skip
    if output_format == "json":
        print_json(result.to_dict())
    elif result.run:  # only host 0 has a run
        print_result(result)
    check_bundle(result)


def check_bundle(result: TrainResult) -> None:
    """Exit with 1 if the run has no bundle, printing why."""
    if result.run and result.bundle is None:
        advice = f"To write one anyway, use `sightline export {result.run} --to bundle` with a larger --tolerance"
        print_error(f"{result.run} has no bundle: {result.no_bundle_reason}. {advice}.")
        raise typer.Exit(1)


def print_result(result: TrainResult) -> None:
    """Print the outcome of a training run."""
    from sightline.report import sentences

    for name, metrics in (("validation", result.validation), ("test", result.test)):
        if metrics is not None:
            title = OUT_OF_FOLD if name == "validation" and "folds" in result.details else name
            values = _format_headlines(result, name) or metrics.describe_accuracy()
            text = f"{values} on {plural(metrics.count, 'image')}, loss {format_value(metrics.loss)}"
            print_line(f"{title:<10} {text}")
            if leaked := sentences.describe_leakage(result.details.get("leaked", {}).get(name), split=title):
                print_line(f"           {leaked}")
            lowest = result.details.get("lowest_recall", {}).get(name)
            if lowest and metrics is (result.test or result.validation):
                recall = format_value(lowest["recall"], lowest["recall_interval"])
                images = plural(lowest["support"], "image")
                print_line(f"           lowest recall {recall} on {images} of {lowest['label']!r}")
            names = result.details.get("untested_classes", {}).get(name, [])
            if missing := sentences.describe_untested(names, len(result.classes), sentences.describe_split(title)):
                print_line(f"           {missing}")
    if result.test is None and result.validation is not None and "folds" not in result.details:
        print_line("           these images chose the epoch: for an unbiased value, hold out others (split.test)")
    temperature = result.details.get("temperature", 1.0)
    if temperature != 1:
        print_line(
            f"           these losses are after calibration (temperature {temperature:.3f}), "
            "the val_loss of epochs before it"
        )
    print_line(
        f"{result.model}, {result.parameters:,} parameters, {plural(result.epochs, 'epoch')} at "
        f"{result.images_per_second:,.0f} training images/s; {result.seconds:.0f} s "
        f"{'since it was resumed' if result.details.get('resumed') else 'in all'}, including reading and evaluation"
    )
    if limit := result.details.get("time"):
        used = format_duration(limit["seconds"])
        print_line(f"time limit {format_duration(limit['limit'])}; the run took {used}. {limit['outlook']}")
    print_line(f"run        {result.run}")
    print_line(f"report     {Path(result.run) / 'report.html'}")
    if result.bundle is not None:
        print_line(f"bundle     {result.bundle}")
    print_line(f"figures    {Path(result.run) / 'figures'}")


def _format_headlines(result: TrainResult, split: str) -> str:
    from sightline.metrics import describe_metric

    values = result.details.get("metrics", {}).get(split, {})
    intervals = result.details.get("metric_intervals", {}).get(split, {})
    return ", ".join(
        f"{describe_metric(key)} {format_value(value, intervals.get(key))}"
        for key, value in values.items()
        if value is not None
    )
