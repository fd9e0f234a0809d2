"""`sightline compare`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sightline import files
from sightline.cli.output import Cell, print_json, say, table

if TYPE_CHECKING:  # annotations only: importing it loads the image packages
    from sightline.workflow.compare import Against, Row


def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN RUN ...", help="Two or more run directories.")],
    figure: Annotated[
        Path | None, typer.Option(help="Plot the loss and accuracy curves of all runs to this PNG file.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare runs side by side: settings that differ, parameters, accuracy with its interval, training time."""
    from sightline.workflow.compare import compare as read
    from sightline.workflow.compare import contests

    rows = read(runs)
    found = contests(rows)
    if figure is not None:
        draw(rows, figure)
    if json:
        plain = [_plain(row) for row in rows]
        against = [_contest(one) for one in found]
        print_json({"runs": plain, "contests": against, "figure": None if figure is None else str(figure)})
        return
    show(rows)
    for one in found:
        say()
        say(_sentence(one))
    if figure is not None:
        say()
        say(f"figure     {figure}")


def draw(rows: tuple[Row, ...], path: Path) -> None:
    """Plot the curves of all runs to a PNG file."""
    from sightline.report.compare import curves

    files.write(path, curves({row.name: row.history for row in rows}), "Name another file with --figure.")


def show(rows: tuple[Row, ...]) -> None:
    """Print one row per run."""
    cells: list[list[Cell]] = []
    for row in rows:
        settings = [f"{key}={_word(value)}" for key, value in row.settings.items()] or ["none"]
        name = row.name if row.status == "complete" else f"{row.name} ({row.status})"
        parameters = "" if row.parameters is None else f"{row.parameters:,}"
        cells.append([name, settings, parameters, *_figures(row), str(row.epochs), f"{row.seconds:.1f}"])
    columns = ["run", "settings that differ", "parameters", "accuracy", "95% interval", "split", "epochs", "seconds"]
    table(columns, cells, right=["parameters", "accuracy", "epochs", "seconds"])


def _figures(row: Row) -> list[str]:
    accuracy = "" if row.accuracy is None else f"{row.accuracy:.4f}"
    ends = row.accuracy_interval
    of = f"{row.part} ({row.leaked} leaked)" if row.part and row.leaked else row.part or ""
    return [accuracy, "" if ends is None else f"{ends.low:.4f} to {ends.high:.4f}", of]


def _word(value: Any) -> str:
    return "unset" if value is None else str(value)


def _plain(row: Row) -> dict[str, Any]:
    ends = row.accuracy_interval
    found = {key: value for key, value in asdict(row).items() if key != "history"}
    return found | {"accuracy_interval": None if ends is None else [ends.low, ends.high]}


def _contest(one: Against) -> dict[str, Any]:
    found: dict[str, Any] = {"first": one.first, "second": one.name, "part": one.part, "note": one.note}
    c = one.contest
    if c is None:
        return found | {"verdict": "cannot tell"}
    ends = None if c.interval is None else [c.interval.low, c.interval.high]
    return found | {
        "verdict": c.verdict, "count": c.count, "first_accuracy": c.first, "second_accuracy": c.second,
        "difference": c.difference, "difference_interval": ends, "only_first": c.only_first,
        "only_second": c.only_second, "p_value": c.p_value,
    }  # fmt: skip


def _sentence(one: Against) -> str:
    c = one.contest
    if c is None:
        return f"{one.name} vs. {one.first}: cannot tell, because {one.note}."
    ends = "" if c.interval is None else f" (95% interval {c.interval.low:+.4f} to {c.interval.high:+.4f})"
    note = f"; {one.note}" if one.note else ""
    return (
        f"{one.name} vs. {one.first}: {c.verdict}. Accuracy {c.difference:+.4f}{ends} on {c.count} {one.part} images; "
        f"only the former is right on {c.only_second}, only the latter on {c.only_first}; "
        f"exact McNemar p = {c.p_value:.3g}{note}."
    )
