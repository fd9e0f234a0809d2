"""`sightline describe`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from sightline.cli.output import (
    RawCsv,
    TableFormat,
    csv_format,
    print_csv,
    print_json,
    print_line,
    print_table,
    terminal_width,
)
from sightline.cli.sources import set_option

if TYPE_CHECKING:  # annotations only: --help must not import NumPy
    from sightline.models.describe import LayerDescription, ModelDescription

WIDE_TERMINAL = 165  # terminal columns needed for a single table


def describe(
    name: Annotated[str, typer.Argument(help="A recipe, a model or a run directory; recipes take precedence.")],
    size: Annotated[str | None, typer.Option(metavar="HxWxC", help="Height, width and channels of the images.")] = None,
    classes: Annotated[int | None, typer.Option(help="Number of classes.")] = None,
    set: Annotated[list[str] | None, set_option("one setting, e.g. model.alpha=0.5")] = None,  # noqa: A002
    diagram: Annotated[
        str | None, typer.Option(metavar="FILE", help="Draw the network to this .svg or .png file.")
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Plot the learning rate over the steps to this .svg or .png file."),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps per epoch, for --schedule.")] = 100,
    output_format: Annotated[TableFormat, csv_format("layer")] = "text",
    raw_csv: RawCsv = False,
) -> None:
    """Describe a network layer by layer: output sizes, parameters, multiply-adds, receptive fields, memory."""
    from sightline.api.description import describe as describe_network

    description = describe_network(
        name, size=size, classes=classes, set=set or (), diagram=diagram, schedule=schedule, steps=steps
    )
    if output_format == "json":
        print_json(description.to_dict())
    elif output_format == "csv":
        layers = description.to_dict()["layers"]
        print_csv(list(layers[0]), (list(layer.values()) for layer in layers), raw=raw_csv)
    else:
        print_description(description)


def print_description(description: ModelDescription) -> None:
    """Print the layers of a network, in two tables if one does not fit the terminal."""
    columns = ["multiply-adds", "field", "memory"]
    numbers = [
        [f"{x.multiply_adds:,}" if x.multiply_adds else "", _format_field(x), _format_bytes(x.bytes)]
        for x in description.layers
    ]
    layers = [[x.name, _describe_type(x), "x".join(map(str, x.output))] for x in description.layers]
    calculations = [[x.output_formula, x.parameters_formula] for x in description.layers]
    if terminal_width() >= WIDE_TERMINAL:
        rows = [[*a, *b, *c] for a, b, c in zip(layers, calculations, numbers, strict=True)]
        print_table(["layer", "type", "output", "output size", "parameters", *columns], rows, right=columns)
    else:
        counts = [f"{x.parameters:,}" if x.parameters else "" for x in description.layers]
        rows = [[*a, n, *b] for a, n, b in zip(layers, counts, numbers, strict=True)]
        print_table(["layer", "type", "output", "parameters", *columns], rows, right=["parameters", *columns])
        print_line()
        print_line("how these numbers are computed")
        rows = [
            [x.name, *calculation]
            for x, calculation in zip(description.layers, calculations, strict=True)
            if any(calculation)
        ]
        print_table(["layer", "output size", "parameters"], rows)
    size = "x".join(map(str, description.size))
    print_line()
    print_line(f"{description.name}: {size} images, {description.classes:,} classes")
    print_line(f"{description.parameters:,} parameters, {_format_bytes(4 * description.parameters)} as float32")
    print_line(
        f"{description.multiply_adds:,} multiply-adds per image in convolutions and dense layers, biases not counted"
    )
    print_line(f"{_format_bytes(description.bytes)} of layer outputs per image")
    print_line(
        "output size: (side - window + padding) / stride + 1; two paddings are shown where one end gets an extra pixel"
    )
    print_line("field: the receptive field in rows (and columns, if they differ) of the image, including padding")


def _describe_type(layer: LayerDescription) -> str:
    window = f" {layer.window[0]}x{layer.window[1]}" if layer.window else ""
    stride = ""
    if layer.strides and layer.strides != (1, 1):
        stride = f" /{layer.strides[0]}" + (f"x{layer.strides[1]}" if layer.strides[0] != layer.strides[1] else "")
    return f"{layer.kind}{window}{stride}" + (f", {layer.activation}" if layer.activation else "")


def _format_field(layer: LayerDescription) -> str:
    rows, columns = layer.receptive_field
    return str(rows) if rows == columns else f"{rows}x{columns}"


def _format_bytes(count: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
