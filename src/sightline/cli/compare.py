"""`sightline compare`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sightline.cli.evaluation_view import format_interval
from sightline.cli.output import Cell, RawCsv, TableFormat, csv_format, print_csv, print_json, print_line, print_table

if TYPE_CHECKING:  # annotations only: importing it loads the image packages
    from sightline.api.comparison import ComparisonRow


def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN RUN ...", help="Two or more run directories.")],
    figure: Annotated[
        Path | None, typer.Option(help="Plot the loss and accuracy curves of all runs to this PNG file.")
    ] = None,
    output_format: Annotated[TableFormat, csv_format("run")] = "text",
    raw_csv: RawCsv = False,
) -> None:
    """Compare runs side by side: settings that differ, parameters, accuracy with its interval, training time."""
    from sightline.api.comparison import compare as compare_runs

    comparison = compare_runs(runs, figure=figure)
    if output_format == "json":
        print_json(comparison.to_dict() | {"figure": None if figure is None else str(figure)})
        return
    if output_format == "csv":
        print_runs_csv(comparison.rows, raw=raw_csv)
        return
    print_runs(comparison.rows)
    for one in comparison.paired:
        print_line()
        print_line(one.describe())
    if figure is not None:
        print_line()
        print_line(f"figure     {figure}")


def print_runs(rows: tuple[ComparisonRow, ...]) -> None:
    """Print one row per run."""
    from sightline.api.comparison import list_metrics
    from sightline.metrics import describe_metric

    cells: list[list[Cell]] = []
    names = list_metrics(rows)
    for row in rows:
        settings = _list_settings(row, rows) or ["none"]
        name = row.name if row.status == "complete" else f"{row.name} ({row.status})"
        parameters = "" if row.parameters is None else f"{row.parameters:,}"
        cells.append([name, settings, parameters, *_accuracy_cells(row)])
        values = (row.metrics.get(key) for key in names)
        cells[-1] += ["" if value is None else f"{value:.4f}" for value in values]
        cells[-1] += [str(row.epochs), f"{row.seconds:.1f}"]
    headings = [describe_metric(name) for name in names]
    columns = ["run", "settings that differ", "parameters", "accuracy", "95% interval", "split", *headings]
    print_table(
        [*columns, "epochs", "seconds"], cells, right=["parameters", "accuracy", *headings, "epochs", "seconds"]
    )


def print_runs_csv(rows: tuple[ComparisonRow, ...], *, raw: bool) -> None:
    """Print one row of CSV per run; each setting that differs is a column."""
    from sightline.api.comparison import list_metrics

    names = list_metrics(rows)
    before, after = ("name", "run", "status", "model", "parameters", "split", "accuracy"), ("loss", "epochs", "seconds")
    cells = [
        [*(getattr(row, name) for name in before), *(row.accuracy_interval or (None, None)),
         *(getattr(row, name) for name in after), row.leaked, *(row.metrics.get(name) for name in names),
         *row.settings.values()]
        for row in rows
    ]  # fmt: skip
    print_csv([*before, "low", "high", *after, "leaked", *names, *rows[0].settings], cells, raw=raw)


def _list_settings(row: ComparisonRow, rows: Sequence[ComparisonRow]) -> list[str]:
    """Return a line for each setting that differs, and for each stage that only some runs have, omitting defaults."""
    from sightline.config import StageConfig

    defaults = StageConfig()
    lines: list[str] = []
    stages: dict[str, list[str]] = {}
    for key, value in row.settings.items():
        stage, _, name = key.rpartition(".")
        if stage.startswith("train.stages.") and any(of.settings.get(f"{stage}.name", "") is None for of in rows):
            texts = stages.setdefault(stage, [])
            if value is not None and value != getattr(defaults, name):
                texts.append(f"{name}={_format_setting(value)}")
        else:
            lines.append(f"{key}={_format_setting(value)}")
    return [*lines, *(f"{stage}: {', '.join(texts) or 'none'}" for stage, texts in stages.items())]


def _accuracy_cells(row: ComparisonRow) -> list[str]:
    accuracy = "" if row.accuracy is None else f"{row.accuracy:.4f}"
    split = f"{row.split} ({row.leaked} leaked)" if row.split and row.leaked else row.split or ""
    return [accuracy, format_interval(row.accuracy_interval, 4), split]


def _format_setting(value: Any) -> str:
    return "unset" if value is None else str(value)
