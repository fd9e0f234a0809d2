"""`sightline export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sightline.cli.output import Display, complain, print_json, say, table
from sightline.cli.sources import Column, Read, listed
from sightline.errors import plural

if TYPE_CHECKING:  # annotations only: --help must not import NumPy
    from sightline.workflow.export import Exported


def export(
    model: Annotated[str, typer.Argument(help="A run; or a bundle, its .zip or .onnx file (needs --parity).")],
    form: Annotated[
        str, typer.Option("--format", help="onnx, bundle, openvino, litert, saved_model or vectors.")
    ] = "onnx",
    precision: Annotated[str, typer.Option(help="float32, bfloat16, float16 or int8.")] = "float32",
    out: Annotated[
        Path | None, typer.Option(help="A folder, or a .onnx or .zip file; default RUN/exports/<format>.")
    ] = None,
    parity: Annotated[
        list[str] | None,
        typer.Option(metavar="DATA", help="Labeled images to compare on; default: the validation split."),
    ] = None,
    tolerance: Annotated[float | None, typer.Option(min=0, help="Maximum difference of any probability.")] = None,
    agreement: Annotated[
        float | None, typer.Option(min=0, max=1, help="Minimum fraction of images with the same top-1 class.")
    ] = None,
    column: Column = None,
    set: Read = None,  # noqa: A002  # the option's own name
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Export a model to another format, reload it and compare; exits with 1 if its predictions differ.

    --format vectors writes test vectors (reference images with their decoded pixels), for decoders in other languages.
    """
    from sightline.workflow.export import export as run
    from sightline.workflow.vectors import vectors

    if form == "vectors":
        path = str(vectors(model, out))
        print_json({"path": path}) if json else say(f"written    {path}")
        return
    with Display(quiet=json) as display:
        done = run(
            model, form, precision=precision, out=out, data=listed(parity, column, set), tolerance=tolerance,
            agreement=agreement, watcher=display,
        )  # fmt: skip
    if json:
        print_json(done.to_dict())
    else:
        _show(done)
    if not done.accepted:
        complain(
            f"The {done.format} file in {done.precision} was not written: on {plural(done.parity.count, 'image')} "
            f"{' and '.join(done.reasons)}. Set another limit, or compare on more images with --parity."
        )
        raise typer.Exit(1)


def _show(done: Exported) -> None:
    found, limits = done.parity, done.tolerance
    change = "unknown" if found.accuracy_change is None else f"{100 * found.accuracy_change:+.2f} points"
    if found.accuracy_interval is not None:
        low, high = 100 * found.accuracy_interval.low, 100 * found.accuracy_interval.high
        change += f" (95% interval {low:+.2f} to {high:+.2f})"
    rows = [
        ["maximum difference", f"{found.greatest_difference:.2g} (at most {limits.difference:g})"],
        ["mean difference", f"{found.mean_difference:.2g}"],
        ["top-1 agreement", f"{found.top1_agreement:.4f} (at least {limits.agreement:g})"],
        ["accuracy change", change],
        ["size", f"{found.bytes / 1e6:.2f} MB"],
        ["latency, one image", f"{found.latency_median:.2f} ms median, {found.latency_p99:.2f} ms 99th percentile"],
        ["throughput, batch size 32", f"{found.throughput:,.0f} images/s"],
    ]
    table([f"{done.format} {done.precision}", f"{plural(found.count, 'image')} of {done.pictures}"], rows)
    if done.kept:
        say(f"kept in float: {', '.join(done.kept)}")
    if done.path is not None:
        say(f"written    {done.path}")
