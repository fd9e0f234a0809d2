"""Options and arguments shared by several commands: images, how to read them, and where a model runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sightline.cli.output import print_line
from sightline.cli.streams import read_stdin, refuse_list
from sightline.cli.verbs import state_order
from sightline.escaping import printable

if TYPE_CHECKING:  # annotations only
    from sightline.api.classifier import Classifier
    from sightline.inference.inputs import InputItem

Sources = Annotated[
    list[str],
    typer.Argument(
        help="Folders with one subfolder per class, .zip or .tar archives of them, Parquet files, manifests, IDX "
        "files, or names such as beans."
    ),
]
Column = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ROLE=NAME",
        help="The manifest column that holds the path, label or split, e.g. label=breed; repeatable.",
    ),
]
Allow = Annotated[
    list[str] | None,
    typer.Option(metavar="KIND", help="Do not stop on this kind of data error, as named by doctor; repeatable."),
]


def set_option(purpose: str) -> Any:
    """Return the option ``--set`` for a command; `purpose` completes its help."""
    return typer.Option("--set", metavar="KEY=VALUE", help=f"Set {purpose}; repeatable.")


ReadSettings = Annotated[list[str] | None, set_option("how images are read, e.g. data.class_level=2 or input.page=2")]
DataSettings = Annotated[
    list[str] | None, set_option("how files and classes are read, data.NAME, e.g. data.class_level=2")
]
FileLimit = Annotated[
    list[str] | None, set_option("a limit on files and archives, data.limits.NAME, e.g. data.limits.file_mb=512")
]


Device = Literal["cpu", "gpu", "auto"]  # as in inference.device_choice, which imports NumPy
DeviceOption = Annotated[
    Device | None,
    typer.Option(
        "--device",
        help="The device for a bundle; gpu: needs onnxruntime-gpu; auto: a GPU, if there is one and batches are not "
        "slower on it.  [default: cpu]",
    ),
]
TileOption = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=16,
        metavar="SCALE",
        help="Predict masks in tiles, cut from the image at this scale; 0: resize the whole image.",
    ),
]


def load_model(model: str, device: Device | None) -> Classifier:
    """Load a model on a device; with ``auto``, print the chosen device and the reason."""
    from sightline.api.loading import load

    classifier = load(model, device=device)
    if device == "auto":
        print_line(printable(classifier.explain_device()), stderr=True)
    return classifier


def list_images(
    verb: str, images: Sequence[str], settings: Sequence[str] | None, *, swapped: bool = False
) -> Iterator[InputItem]:
    """Return the images that arguments of a command refer to; raise for a wrong path before a model is loaded.

    Errors state the order of the arguments if they seem to be `swapped`, or the first image is a model.
    """
    from sightline.data.storage import holds_model
    from sightline.inference.inputs import expand_inputs, parse_file_limits, take_first

    refuse_list(images)
    limits = parse_file_limits(settings or ())
    items = expand_inputs(images, partial(read_stdin, limits.file_mb), limits)
    with state_order(verb, swapped=swapped or holds_model(Path(images[0]))):
        return chain(take_first(items), items)
