"""`sightline compress`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sightline.cli.output import Display, print_json, say, table
from sightline.cli.sources import Column, Read, listed
from sightline.errors import plural

if TYPE_CHECKING:  # annotations only: --help must not import NumPy
    from sightline.compression.store import Candidate
    from sightline.workflow.compress import Compression


def compress(
    model: Annotated[Path, typer.Argument(help="A run directory.")],
    data: Annotated[list[str] | None, typer.Option(help="Labeled images; default: the run's own data.")] = None,
    out: Annotated[Path | None, typer.Option(help="The directory of the search; default <MODEL>/compressed.")] = None,
    max_drop: Annotated[
        float,
        typer.Option(min=0, help="Maximum drop in validation accuracy, in percentage points; 0: no significant drop."),
    ] = 0.0,
    max_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Maximum size of the ONNX file, e.g. 2MB.")
    ] = None,
    max_latency: Annotated[
        str | None, typer.Option(metavar="TIME", help="Maximum median latency at batch size 1, e.g. 5ms.")
    ] = None,
    max_params: Annotated[int | None, typer.Option(min=1, help="Maximum number of parameters.")] = None,
    means: Annotated[
        str, typer.Option(help="Comma-separated compression methods to try.")
    ] = "rightsize,slim,distill,int8,float16",
    epochs: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Epochs of each fine-tuning, up to 3 times as many for a new network; default: a quarter of the run.",
        ),
    ] = None,
    column: Column = None,
    set: Read = None,  # noqa: A002  # the option's own name
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Compress a run's model without losing accuracy: search within a budget, and save each candidate as a bundle.

    To continue an interrupted search, run the same command again. Exits with 1 if no candidate meets the budget.
    """
    from sightline.compression.search import Budget
    from sightline.workflow import compress as work

    budget = Budget(
        max_drop / 100,
        None if max_size is None else work.size(max_size),
        None if max_latency is None else work.milliseconds(max_latency),
        max_params,
    )
    names = [name.strip() for name in means.split(",") if name.strip()]
    with Display(quiet=json) as display:
        found = work.compress(
            model, data=listed(data, column, set), out=out, budget=budget, means=names, epochs=epochs, watcher=display
        )
    if json:
        print_json(found.to_dict())
    else:
        show(found)
    if not found.reached:
        raise typer.Exit(1)


def show(found: Compression) -> None:
    """Print the candidates, with the Pareto front marked, and the chosen one."""
    columns = ["", "model", "accuracy", "parameters", "size", "multiply-adds", "latency", "p99"]
    rows = [_row(c, found) for c in found.candidates if not c.failed]
    table(columns, rows, right=columns[2:])
    large = found.candidates[0]
    say()
    say("* Pareto-optimal; accuracy on validation, latency in ms at batch size 1")
    if found.best is None:
        say(f"No candidate meets the budget. Nearest: {found.nearest.name}: {'; '.join(found.misses)}.")
    else:
        best, quicker = found.best, large.latency / max(found.best.latency, 1e-9)
        say(
            f"best       {best.name}: {large.parameters / best.parameters:.1f} times fewer parameters, "
            f"{large.bytes / best.bytes:.1f} times fewer bytes, {quicker:.1f} times faster"
        )
    if found.judgement is not None:
        said = found.judgement
        verdict = "no significant loss"
        if said.worse:
            verdict = "significantly worse than the original model" + (
                ", within the allowed drop" if found.reached else ""
            )
        say(
            f"{said.part:<11}{said.small:.4f} vs. {said.large:.4f} on {plural(said.count, 'image')}, difference "
            f"{100 * said.difference:+.2f} points (95% interval {100 * said.interval.low:+.2f} to "
            f"{100 * said.interval.high:+.2f}), {said.lost} lost and {said.won} gained, "
            f"McNemar p = {said.p_value:.3g}: {verdict}"
        )
    say(f"bundles    {found.out / 'candidates'}")
    if found.best is not None:
        say(f"chosen     {found.out / 'best'}")


def _row(c: Candidate, found: Compression) -> list[str]:
    return [
        "*" if c.name in found.front else "", c.name, f"{c.accuracy:.4f}", f"{c.parameters:,}",
        f"{c.bytes / 1e6:.3f} MB", f"{c.multiply_adds:,}", f"{c.latency:.2f}", f"{c.latency_p99:.2f}",
    ]  # fmt: skip
