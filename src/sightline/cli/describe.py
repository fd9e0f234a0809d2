"""`sightline describe`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from sightline.cli.output import print_json, say, table, width

if TYPE_CHECKING:  # annotations only: --help must not import NumPy
    from sightline.models.describe import Description, Layer

WIDE = 165  # columns of a terminal that fit everything into one table


def describe(
    name: Annotated[str, typer.Argument(help="A recipe, a model or a run directory; recipes take precedence.")],
    size: Annotated[str | None, typer.Option(metavar="HxWxC", help="Height, width and channels of the images.")] = None,
    classes: Annotated[int | None, typer.Option(help="Number of classes.")] = None,
    set: Annotated[  # noqa: A002
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Set one setting, e.g. model.alpha=0.5; repeatable.")
    ] = None,
    diagram: Annotated[
        str | None, typer.Option(metavar="FILE", help="Draw the network to this .svg or .png file.")
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Plot the learning rate over the steps to this .svg or .png file."),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps per epoch, for --schedule.")] = 100,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Describe a network layer by layer: output sizes, parameters, multiply-adds, receptive fields, memory."""
    from sightline.workflow import describe as work

    subject = work.find(name, set or [])
    work.check(subject, schedule, diagram)
    found = work.describe(subject, size=size, classes=classes)
    if diagram:
        work.draw(found, diagram)
    if schedule:
        work.draw_schedule(subject, schedule, steps)
    if json:
        print_json(found.to_dict())
    else:
        show(found)


def show(found: Description) -> None:
    """Print the layers of a network, in two tables if one does not fit the terminal."""
    figures = ["multiply-adds", "field", "memory"]
    numbers = [[f"{x.multiply_adds:,}" if x.multiply_adds else "", _sides(x), _memory(x.bytes)] for x in found.layers]
    layers = [[x.name, _what(x), "x".join(map(str, x.output))] for x in found.layers]
    sums = [[x.output_sum, x.parameters_sum] for x in found.layers]
    if width() >= WIDE:
        rows = [[*a, *b, *c] for a, b, c in zip(layers, sums, numbers, strict=True)]
        table(["layer", "type", "output", "output size", "parameters", *figures], rows, right=figures)
    else:
        counts = [f"{x.parameters:,}" if x.parameters else "" for x in found.layers]
        rows = [[*a, n, *b] for a, n, b in zip(layers, counts, numbers, strict=True)]
        table(["layer", "type", "output", "parameters", *figures], rows, right=["parameters", *figures])
        say()
        say("how these numbers are computed")
        rows = [[x.name, *worked] for x, worked in zip(found.layers, sums, strict=True) if any(worked)]
        table(["layer", "output size", "parameters"], rows)
    size = "x".join(map(str, found.size))
    say()
    say(f"{found.name}: {size} images, {found.classes:,} classes")
    say(f"{found.parameters:,} parameters, {_memory(4 * found.parameters)} as float32")
    say(f"{found.multiply_adds:,} multiply-adds per image in convolutions and dense layers, biases not counted")
    say(f"{_memory(found.bytes)} of layer outputs per image")
    say("output size: (side - window + padding) / stride + 1; two paddings are shown where one end gets an extra pixel")
    say("field: the receptive field in rows (and columns, if they differ) of the image, including padding")


def _what(layer: Layer) -> str:
    window = f" {layer.window[0]}x{layer.window[1]}" if layer.window else ""
    stride = ""
    if layer.strides and layer.strides != (1, 1):
        stride = f" /{layer.strides[0]}" + (f"x{layer.strides[1]}" if layer.strides[0] != layer.strides[1] else "")
    return f"{layer.kind}{window}{stride}" + (f", {layer.activation}" if layer.activation else "")


def _sides(layer: Layer) -> str:
    rows, columns = layer.receptive_field
    return str(rows) if rows == columns else f"{rows}x{columns}"


def _memory(count: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
