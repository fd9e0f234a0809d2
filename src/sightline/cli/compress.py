"""`sightline compress`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sightline.cli.output import FormatOption, print_json, print_line, print_table
from sightline.cli.sources import Column, DataSettings
from sightline.errors import plural
from sightline.progress import ProgressDisplay

if TYPE_CHECKING:  # annotations only: --help must not import NumPy
    from sightline.api.compression_result import CompressionResult
    from sightline.compress.search_dir import CompressionCandidate


def compress(
    model: Annotated[Path, typer.Argument(help="A run directory.")],
    data: Annotated[list[str] | None, typer.Option(help="Labeled images; default: the run's own data.")] = None,
    out: Annotated[Path | None, typer.Option(help="The directory of the search; default <MODEL>/compressed.")] = None,
    max_drop: Annotated[
        float,
        typer.Option(
            min=0,
            max=100,
            help="Maximum drop in validation accuracy, or in the score of an image's labels or mask, plus its standard "
            "error, in percentage points; 0: no significant drop.",
        ),
    ] = 0.0,
    max_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Maximum size of the ONNX file, e.g. 2MB.")
    ] = None,
    max_latency: Annotated[
        str | None, typer.Option(metavar="TIME", help="Maximum median latency at batch size 1, e.g. 5ms.")
    ] = None,
    max_params: Annotated[int | None, typer.Option(min=1, help="Maximum number of parameters.")] = None,
    methods: Annotated[
        str, typer.Option(help="Comma-separated compression methods to try; for masks, by default those that apply.")
    ] = "shrink-head,prune,distill,int8,float16",
    epochs: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Epochs of each fine-tuning, up to 3 times as many for a new network; default: a quarter of the run.",
        ),
    ] = None,
    column: Column = None,
    set: DataSettings = None,  # noqa: A002  # the option's own name
    output_format: FormatOption = "text",
) -> None:
    """Compress a run's model without losing accuracy: search within a budget, and save each candidate as a bundle.

    To continue an interrupted search, run the same command again. Exits with 1 if no candidate meets the budget.
    """
    from sightline.api import compression
    from sightline.api.images import list_data

    budget = compression.build_budget(max_drop, max_size, max_latency, max_params)
    names = compression.list_methods(methods)
    with ProgressDisplay(quiet=output_format == "json") as display:
        result = compression.compress(
            model,
            data=list_data(data or None, column, set or ()),
            out=out,
            budget=budget,
            methods=names,
            epochs=epochs,
            callback=display,
        )
    if output_format == "json":
        print_json(result.to_dict())
    else:
        print_compression(result)
    if not result.meets_budget:
        raise typer.Exit(1)


def print_compression(result: CompressionResult) -> None:
    """Print the candidates, with the Pareto front marked, and the chosen one."""
    from sightline.metrics import describe_metric

    original = result.candidates[0]
    metrics = [describe_metric(name) for name in original.shown_metrics]
    columns = ["", "model", *metrics, "parameters", "size", "multiply-adds", "latency", "p99"]
    rows = [_row(c, result) for c in result.candidates if not c.failed]
    print_table(columns, rows, right=columns[2:])
    print_line()
    print_line(f"* Pareto-optimal; {' and '.join(metrics)} on validation, latency in ms at batch size 1")
    if result.best is None:
        print_line(f"No candidate meets the budget. Nearest: {result.nearest.name}: {'; '.join(result.misses)}.")
    elif result.best is original:
        print_line("best       original: no smaller candidate meets the budget")
    else:
        best, speedup = result.best, original.latency / max(result.best.latency, 1e-9)
        savings = describe_savings(original.parameters / best.parameters, original.bytes / best.bytes, speedup)
        print_line(f"best       {best.name}: {savings}")
    if result.comparison is not None:
        comparison = result.comparison
        interval = comparison.difference_interval
        ends = "" if interval is None else f" (95% interval {100 * interval.low:+.2f} to {100 * interval.high:+.2f})"
        name = "" if comparison.metric == "accuracy" else f"{describe_metric(comparison.metric)} "
        verdict = "no significant loss"
        if comparison.significantly_worse:
            verdict = "significantly worse than the original model" + (
                ", within the allowed drop" if result.meets_budget else ""
            )
        print_line(
            f"{comparison.split:<11}{name}{comparison.compressed_score:.4f} vs. {comparison.original_score:.4f} on "
            f"{plural(comparison.count, 'image')}, difference {100 * comparison.difference:+.2f} points{ends}, "
            f"{comparison.describe_test()}: {verdict}"
        )
    print_line(f"bundles    {result.out / 'candidates'}")
    if result.best is not None:
        print_line(f"chosen     {result.out / 'best'}")


def describe_savings(parameters: float, size: float, speedup: float) -> str:
    """Return by what factors a model has fewer parameters and bytes than the original, and is faster.

    >>> describe_savings(1.0, 2.75, 1.12), describe_savings(1.0, 1.0, 0.8)
    ('2.8 times fewer bytes, 1.1 times faster', '1.2 times slower')
    """
    ratios = {
        "fewer parameters": parameters, "fewer bytes": size, "faster": speedup, "slower": 1 / max(speedup, 1e-9),
    }  # fmt: skip
    savings = [f"{ratio:.1f} times {words}" for words, ratio in ratios.items() if round(ratio, 1) > 1]
    return ", ".join(savings) or "no smaller and no faster than the original"


def _row(c: CompressionCandidate, result: CompressionResult) -> list[str]:
    return [
        "*" if c.name in result.pareto_front else "", c.name, *(f"{value:.4f}" for value in c.shown_metrics.values()),
        f"{c.parameters:,}", f"{c.bytes / 1e6:.3f} MB", f"{c.multiply_adds:,}", f"{c.latency:.2f}",
        f"{c.latency_p99:.2f}",
    ]  # fmt: skip
