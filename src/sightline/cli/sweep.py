"""`sightline sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sightline.cli.output import Display, print_json, say, table
from sightline.cli.sources import Allow, Column, Read, Sources, data_assignments, reading
from sightline.errors import ModelError

if TYPE_CHECKING:  # annotations only: --help must not import Optuna
    from sightline.sweep import Sweep, Trial


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
    set: Read = None,  # noqa: A002  # the option's own name
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Do not cache decoded images.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Search hyperparameters (grid, random or tpe): train one run per trial, and rank the results.

    To continue an interrupted sweep, run the same command again; several processes running it share the trials.
    """
    from sightline.sweep import as_dict
    from sightline.sweep import sweep as search

    with Display(quiet=json) as display:
        reading(column, allow, set)  # report mistakes before any work
        found = search(
            data, space, out=out, trials=trials, storage=storage, cache=not no_cache, watcher=display,
            set=[*(set or ()), *data_assignments(column, allow)],
        )  # fmt: skip
    if json:
        print_json(as_dict(found))
    else:
        show(found)
    failed = [t for t in found.trials if t.state == "failed"]
    if found.best is None and failed:
        raise ModelError(f"No trial was completed, and {len(failed)} failed; the first: {failed[0].reason}")


def show(found: Sweep) -> None:
    """Print the trials, best first, and where to find the results."""
    from sightline.report.compare import short_names

    names = list(dict.fromkeys(name for trial in found.trials for name in trial.settings))
    columns = ["trial", found.monitor, "95% interval", *short_names(names), "epochs", "seconds", "state"]
    rows = [[*_left(t), *(_word(t.settings.get(name)) for name in names), *_right(t)] for t in found.trials]
    table(columns, rows, right=["trial", found.monitor, "epochs", "seconds"])
    best = found.best
    if best is not None:
        settings = ", ".join(f"{name}={_word(value)}" for name, value in best.settings.items())
        say()
        say(f"best       trial {best.trial}, {settings}: {found.monitor} {best.value:.4f}")
        say(f"run        {best.run}")
    if found.importance is not None:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in found.importance.items())
        say(f"importance {shares}")
    say(f"results    {Path(found.folder) / 'results.csv'}, figures/")


def _left(trial: Trial) -> list[str]:
    ends = trial.accuracy_interval
    value = "" if trial.value is None else f"{trial.value:.4f}"
    return [str(trial.trial), value, "" if ends is None else f"{ends.low:.4f} to {ends.high:.4f}"]


def _right(trial: Trial) -> list[str]:
    seconds = "" if trial.seconds is None else f"{trial.seconds:.1f}"
    state = trial.state if trial.reason is None else f"{trial.state}: {trial.reason}"
    return ["" if trial.epochs is None else str(trial.epochs), seconds, state]


def _word(value: object) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
