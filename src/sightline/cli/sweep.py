"""`sightline sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sightline.cli.evaluation_view import format_interval
from sightline.cli.output import RawCsv, TableFormat, csv_format, print_csv, print_json, print_line, print_table
from sightline.cli.sources import Allow, Column, Sources, set_option
from sightline.cli.train import CpusPerWorker, Engine, RayAddress
from sightline.cli.verbs import state_order
from sightline.errors import ModelError
from sightline.escaping import quote_path
from sightline.progress import ProgressDisplay

if TYPE_CHECKING:  # annotations only: --help must not import Optuna
    from sightline.sweeps import SweepResult


def sweep(
    data: Sources,
    space: Annotated[
        str, typer.Argument(metavar="SPACE", help="A TOML file with the search space, or transfer-table.")
    ],
    out: Annotated[Path | None, typer.Option(help="The directory of the sweep; default runs/<space>-<data>.")] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Total number of trials.")] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="A database URL, or journal:FILE, that several machines can share; default study.db."
        ),
    ] = None,
    column: Column = None,
    allow: Allow = None,
    set: Annotated[  # noqa: A002  # the option's own name
        list[str] | None, set_option("a setting of all trials, e.g. train.epochs=5 or data.class_level=2")
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Do not cache decoded images.")] = False,
    engine: Engine = "local",
    num_workers: Annotated[
        int | None, typer.Option(help="With --engine ray: the number of trials at a time; default 1.")
    ] = None,
    cpus_per_worker: CpusPerWorker = None,
    ray_address: RayAddress = None,
    output_format: Annotated[TableFormat, csv_format("trial, as in results.csv")] = "text",
    raw_csv: RawCsv = False,
) -> None:
    """Search hyperparameters (grid, random or tpe): train one run per trial, and rank the results.

    To continue an interrupted sweep, run the same command again; several processes running it share the trials.
    """
    from sightline.sweeps import sweep as search

    quiet = output_format != "text"
    with ProgressDisplay(quiet=quiet) as display, state_order("sweep", swapped=Path(space).is_dir()):
        result = search(
            data, space, out=out, trials=trials, storage=storage, column=column, allow=allow or (), set=set or (),
            cache=not no_cache, engine=engine, num_workers=num_workers, cpus_per_worker=cpus_per_worker,
            ray_address=ray_address, callback=display,
        )  # fmt: skip
    if output_format == "json":
        print_json(result.to_dict())
    elif output_format == "csv":
        print_csv(*result.to_table(), raw=raw_csv)
    else:
        print_sweep(result)
    failed = [t for t in result.trials if t.state == "failed"]
    if result.best is None and failed:
        reason = "the reasons are above." if output_format == "text" else f"the first: {failed[0].reason}"
        raise ModelError(f"No trial was completed, and {len(failed)} failed; {reason}")


def print_sweep(result: SweepResult) -> None:
    """Print the trials, best first, and where to find the results."""
    from sightline.report.comparison_plots import short_names

    names = list(dict.fromkeys(name for trial in result.trials for name in trial.settings))
    columns = ["trial", result.monitor, "95% interval", *short_names(names), "epochs", "seconds", "state"]
    rows = [
        [
            str(t.trial),
            "" if t.value is None else f"{t.value:.4f}",
            format_interval(t.interval, 4),
            *(_format_value(t.settings.get(name)) for name in names),
            "" if t.epochs is None else str(t.epochs),
            "" if t.seconds is None else f"{t.seconds:.1f}",
            t.state,
        ]
        for t in result.trials
    ]
    print_table(columns, rows, right=["trial", result.monitor, "epochs", "seconds"])
    for reason in dict.fromkeys(t.reason for t in result.trials if t.reason is not None):
        alike = [str(t.trial) for t in result.trials if t.reason == reason]
        print_line(f"failed     {'trial' if len(alike) == 1 else 'trials'} {', '.join(alike)}: {reason}")
    best = result.best
    if best is not None:
        settings = ", ".join(f"{name}={_format_value(value)}" for name, value in best.settings.items())
        print_line()
        print_line(f"best       trial {best.trial}, {settings}: {result.monitor} {best.value:.4f}")
        count = sum(t.state == "complete" for t in result.trials)
        if count > 1:
            command = f"`sightline evaluate {quote_path(best.run or '')}`"
            print_line(f"           the best of {count} trials is partly lucky: {command} shows its test metrics")
        print_line(f"run        {best.run}")
    if result.importance is not None:
        importances = ", ".join(f"{name} {fraction:.0%}" for name, fraction in result.importance.items())
        print_line(f"importance {importances}")
    figures = ", figures/" if (Path(result.directory) / "figures").is_dir() else ""
    print_line(f"results    {Path(result.directory) / 'results.csv'}{figures}")


def _format_value(value: object) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
