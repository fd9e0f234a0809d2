"""`sightline export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sightline.cli.output import FormatOption, print_error, print_json, print_line, print_table
from sightline.cli.sources import Column, DataSettings
from sightline.errors import UsageError, plural
from sightline.inference.exporters import EXPORTERS, PRECISIONS
from sightline.progress import ProgressDisplay

if TYPE_CHECKING:  # annotations only: --help must not import NumPy
    from sightline.api.export import ExportResult


def export(
    model: Annotated[str, typer.Argument(help="A run; or a bundle, its .zip or .onnx file (needs --parity).")],
    to: Annotated[
        str,
        typer.Option(
            help=f"{', '.join(EXPORTERS.registered_names)} or vectors, or a format that an installed package adds."
        ),
    ] = "onnx",
    precision: Annotated[str, typer.Option(help=f"{', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}.")] = "float32",
    out: Annotated[
        Path | None, typer.Option(help="A folder, or a .onnx or .zip file; default RUN/exports/<to>.")
    ] = None,
    parity: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DATA", help="Labeled images to compare on; default: the validation images, else training images."
        ),
    ] = None,
    tolerance: Annotated[float | None, typer.Option(min=0, help="Maximum difference of any probability.")] = None,
    min_agreement: Annotated[
        float | None, typer.Option(min=0, max=1, help="Minimum fraction of images with the same top-1 class.")
    ] = None,
    column: Column = None,
    set: DataSettings = None,  # noqa: A002  # the option's own name
    output_format: FormatOption = "text",
) -> None:
    """Export a model to another format, reload it and compare; exits with 1 if its predictions differ.

    --to vectors writes test vectors (reference images with their decoded pixels), for decoders in other languages.
    """
    from sightline.api.decoding_vectors import write_decoding_vectors
    from sightline.api.export import export_model
    from sightline.api.images import list_data

    if to == "vectors":
        options = {
            "precision": precision != "float32", "parity": parity, "tolerance": tolerance is not None,
            "min-agreement": min_agreement is not None, "column": column, "set": set,
        }  # fmt: skip
        if name := next((name for name, is_given in options.items() if is_given), None):
            raise UsageError(f"--to vectors compares no model, so it takes no --{name}: leave it out.")
        path = str(write_decoding_vectors(model, out))
        print_json({"path": path}) if output_format == "json" else print_line(f"written    {path}")
        return
    with ProgressDisplay(quiet=output_format == "json") as display:
        exported = export_model(
            model, to, precision=precision, out=out, data=list_data(parity or None, column, set or ()),
            tolerance=tolerance, agreement=min_agreement, callback=display,
        )  # fmt: skip
    if output_format == "json":
        print_json(exported.to_dict())
    else:
        _print_export(exported)
    if not exported.accepted:
        print_error(exported.describe_rejection())
        raise typer.Exit(1)


def _print_export(exported: ExportResult) -> None:
    parity, limits = exported.parity, exported.tolerance
    change = "unknown" if parity.accuracy_change is None else f"{100 * parity.accuracy_change:+.2f} points"
    if parity.accuracy_interval is not None:
        low, high = 100 * parity.accuracy_interval.low, 100 * parity.accuracy_interval.high
        change += f" (95% interval {low:+.2f} to {high:+.2f})"
    rows = [
        ["maximum difference", f"{parity.max_difference:.2g} (at most {limits.difference:g})"],
        ["mean difference", f"{parity.mean_difference:.2g}"],
        ["top-1 agreement", f"{parity.top1_agreement:.4f} (at least {limits.agreement:g})"],
        ["accuracy change", change],
        ["size", f"{parity.bytes / 1e6:.2f} MB"],
        ["latency, one image", f"{parity.latency_median:.2f} ms median, {parity.latency_p99:.2f} ms 99th percentile"],
        ["throughput, batch size 32", f"{parity.throughput:,.0f} images/s"],
    ]
    print_table(
        [
            f"{exported.format} {exported.precision}",
            f"{plural(parity.count, 'image')} of {exported.images_description}",
        ],
        rows,
    )
    if exported.float_layers:
        print_line(f"kept in float: {', '.join(exported.float_layers)}")
    if exported.path is not None:
        print_line(f"written    {exported.path}")
