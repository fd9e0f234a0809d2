"""`sightline compress`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sightline.cli.output import Display, print_json, say, table
from sightline.cli.sources import Column, Read, listed
from sightline.errors import plural

if TYPE_CHECKING:  # annotations only: the help must not wait for NumPy
    from sightline.compression.store import Candidate
    from sightline.workflow.compress import Compression


def compress(
    model: Annotated[Path, typer.Argument(help="A run directory.")],
    data: Annotated[list[str] | None, typer.Option(help="Labelled pictures; default: the run's own.")] = None,
    out: Annotated[Path | None, typer.Option(help="The search's folder; default <MODEL>/compressed.")] = None,
    max_drop: Annotated[
        float, typer.Option(min=0, help="Points of accuracy that validation may lose; 0: none that a test can tell.")
    ] = 0.0,
    max_size: Annotated[str | None, typer.Option(metavar="SIZE", help="Of the ONNX file, as 2MB.")] = None,
    max_latency: Annotated[str | None, typer.Option(metavar="TIME", help="Median at batch 1, as 5ms.")] = None,
    max_params: Annotated[int | None, typer.Option(min=1, help="Weights of the network.")] = None,
    means: Annotated[
        str, typer.Option(help="What to try, with commas between.")
    ] = "rightsize,slim,distill,int8,float16",
    epochs: Annotated[
        int | None,
        typer.Option(
            min=0, help="Of each recovery, up to 3 times as many for a new network; default: a quarter of the run's."
        ),
    ] = None,
    column: Column = None,
    set: Read = None,  # noqa: A002  # the option's own name
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Make a run's model much smaller without loss: search under a budget, and keep every candidate as a bundle.

    The same command goes on where it was stopped.
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
    """Print the candidates, the front marked, and what was chosen."""
    columns = ["", "model", "accuracy", "parameters", "size", "multiply-adds", "latency", "p99"]
    rows = [_row(c, found) for c in found.candidates if not c.failed]
    table(columns, rows, right=columns[2:])
    large = found.candidates[0]
    say()
    say("* no other beats it in all of this; accuracy on validation, milliseconds at batch 1")
    if found.best is None:
        say(f"No candidate meets the budget. Nearest: {found.nearest.name}: {'; '.join(found.misses)}.")
    else:
        best, quicker = found.best, large.latency / max(found.best.latency, 1e-9)
        say(
            f"best       {best.name}: {large.parameters / best.parameters:.1f} times fewer parameters, "
            f"{large.bytes / best.bytes:.1f} times fewer bytes, {quicker:.1f} times as quick"
        )
    if found.judgement is not None:
        said = found.judgement
        verdict = "no loss that the test can tell"
        if said.worse:
            verdict = "worse than the large model" + (", by no more than was allowed" if found.reached else "")
        say(
            f"{said.part:<11}{said.small:.4f} against {said.large:.4f} on {plural(said.count, 'image')}, difference "
            f"{100 * said.difference:+.2f} points (95% interval {100 * said.interval.low:+.2f} to "
            f"{100 * said.interval.high:+.2f}), {said.lost} lost and {said.won} won, McNemar p = {said.p_value:.3g}: "
            f"{verdict}"
        )
    say(f"bundles    {found.out / 'candidates'}")
    if found.best is not None:
        say(f"chosen     {found.out / 'best'}")


def _row(c: Candidate, found: Compression) -> list[str]:
    return [
        "*" if c.name in found.front else "", c.name, f"{c.accuracy:.4f}", f"{c.parameters:,}",
        f"{c.bytes / 1e6:.3f} MB", f"{c.multiply_adds:,}", f"{c.latency:.2f}", f"{c.latency_p99:.2f}",
    ]  # fmt: skip
