"""`sightline compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sightline import _io
from sightline.cli.output import Cell, FormatOption, OutputFormat, print_json, print_line, print_table

if TYPE_CHECKING:  # annotations only: importing it loads the image packages
    from sightline.api.comparison import ComparisonRow, PairedRun


def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN RUN ...", help="Two or more run directories.")],
    figure: Annotated[
        Path | None, typer.Option(help="Plot the loss and accuracy curves of all runs to this PNG file.")
    ] = None,
    output_format: FormatOption = OutputFormat.text,
) -> None:
    """Compare runs side by side: settings that differ, parameters, accuracy with its interval, training time."""
    from sightline.api.comparison import compare_runs as read
    from sightline.api.comparison import compare_to_first

    rows = read(runs)
    comparisons = compare_to_first(rows)
    if figure is not None:
        plot_curves(rows, figure)
    if output_format == OutputFormat.json:
        print_json(
            {
                "runs": [row.to_dict() for row in rows],
                "comparisons": [comparison.to_dict() for comparison in comparisons],
                "figure": None if figure is None else str(figure),
            }
        )
        return
    print_runs(rows)
    for one in comparisons:
        print_line()
        print_line(_describe_comparison(one))
    if figure is not None:
        print_line()
        print_line(f"figure     {figure}")


def plot_curves(rows: tuple[ComparisonRow, ...], path: Path) -> None:
    """Plot the curves of all runs to a PNG file."""
    from sightline.report.comparison_plots import plot_curves

    _io.write_atomic(path, plot_curves({row.name: row.history for row in rows}), "Name another file with --figure.")


def print_runs(rows: tuple[ComparisonRow, ...]) -> None:
    """Print one row per run."""
    cells: list[list[Cell]] = []
    for row in rows:
        settings = [f"{key}={_format_setting(value)}" for key, value in row.settings.items()] or ["none"]
        name = row.name if row.status == "complete" else f"{row.name} ({row.status})"
        parameters = "" if row.parameters is None else f"{row.parameters:,}"
        cells.append([name, settings, parameters, *_accuracy_cells(row), str(row.epochs), f"{row.seconds:.1f}"])
    columns = ["run", "settings that differ", "parameters", "accuracy", "95% interval", "split", "epochs", "seconds"]
    print_table(columns, cells, right=["parameters", "accuracy", "epochs", "seconds"])


def _accuracy_cells(row: ComparisonRow) -> list[str]:
    accuracy = "" if row.accuracy is None else f"{row.accuracy:.4f}"
    interval = row.accuracy_interval
    split = f"{row.split} ({row.leaked} leaked)" if row.split and row.leaked else row.split or ""
    return [accuracy, "" if interval is None else f"{interval.low:.4f} to {interval.high:.4f}", split]


def _format_setting(value: Any) -> str:
    return "unset" if value is None else str(value)


def _describe_comparison(comparison: PairedRun) -> str:
    c = comparison.comparison
    if c is None:
        return f"{comparison.second} vs. {comparison.first}: not compared, because {comparison.note}."
    interval = c.difference_interval
    interval_text = "" if interval is None else f" (95% interval {interval.low:+.4f} to {interval.high:+.4f})"
    note = f"; {comparison.note}" if comparison.note else ""
    return (
        f"{comparison.second} vs. {comparison.first}: {c.verdict}. Accuracy "
        f"{c.difference:+.4f}{interval_text} on {c.count} {comparison.split} images; "
        f"only the former is right on {c.only_second_correct}, only the latter on {c.only_first_correct}; "
        f"exact McNemar p = {c.p_value:.3g}{note}."
    )
