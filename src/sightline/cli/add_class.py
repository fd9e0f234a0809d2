"""`sightline add-class`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sightline.cli.output import FormatOption, print_json, print_line
from sightline.cli.predict import Images
from sightline.cli.sources import FileLimit, list_images
from sightline.cli.verbs import state_order
from sightline.errors import plural
from sightline.escaping import printable
from sightline.progress import ProgressDisplay

if TYPE_CHECKING:  # annotations only: --help must not import NumPy
    from sightline.api.added_class import AddedClass


def add_class(
    model: Annotated[str, typer.Argument(help="A run; or a bundle, with --reference and --out.")],
    name: Annotated[str, typer.Argument(help="The new class.")],
    images: Images,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Labeled images of the other classes, as for train, or a file that `sightline embed --labeled` wrote; "
            "default: those of the run. Where an image may have several labels, some may have the new one.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The bundle to write: a folder, or a .zip or .onnx file; default: with-NAME in the run."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the bundle at --out.")] = False,
    set: FileLimit = None,  # noqa: A002  # the option's own name
    output_format: FormatOption = "text",
) -> None:
    """Add a class to a model from a few images of it, without training; the other classes keep their logits.

    The new model is a bundle for predict, serve, evaluate and export. Its last layer has one more row, fitted to the
    new images and to those of the run. In a multi-label model, the probability of the new label comes from the votes
    of these images, and the other labels keep their probabilities.
    """
    from sightline.api.loading import is_model, load

    place, has_images = Path(name), any(Path(image).exists() for image in images)
    swapped = is_model(place) or (place.exists() and not has_images)  # the folder of a class may have its name
    items = list_images("add-class", images, set, swapped=swapped)
    quiet = output_format == "json"
    with ProgressDisplay(quiet=quiet) as display, state_order("add-class", swapped=swapped):
        added = load(model).add_class(
            name, items, reference=reference, out=out, force=force, set=set or (), callback=display
        )
    if output_format == "json":
        print_json(added.to_dict())
    else:
        _print_summary(added)


def _print_summary(added: AddedClass) -> None:
    name = printable(added.label)
    low, high = added.recall_interval
    each = "each" if added.folds == added.count else f"a part ({added.folds} folds)"
    print_line(f"class        {name}, the last of {len(added.classes)}, from {plural(added.count, 'image')}")
    print_line(
        f"recall       {added.recalled} of {added.count} when {each} is left out of the fit (95% interval {low:.3f} to "
        f"{high:.3f})"
    )
    if added.threshold is None:
        _print_accuracy(added, name)
    else:
        _print_threshold(added, name)
    print_line(f"model        {added.path}")


def _print_accuracy(added: AddedClass, name: str) -> None:
    if added.accuracy is None or added.accuracy_before is None:
        print_line("accuracy     not measured: there are no images of the other classes to evaluate on")
    else:
        split = f", its {added.split} split" if added.split != "reference" else " that were left out of the fit"
        print_line(
            f"accuracy     {added.accuracy:.4f} on the other classes, was {added.accuracy_before:.4f} "
            f"({_describe_split(added)}{split}); {added.taken} of them are predicted as {name}"
        )
    print_line(f"calibration  that of the other classes; not fitted to {name}")
    if added.dropped_thresholds:
        print_line("thresholds   left out: fit them again with `sightline evaluate`")


def _print_threshold(added: AddedClass, name: str) -> None:
    split = f", its {added.split} split" if added.split != "reference" else " without the label"
    print_line(
        f"threshold    {added.threshold:.3f} for {name}; the other labels keep their probabilities and thresholds"
    )
    print_line(f"predicted    {name} for {added.taken} of {_describe_split(added)}{split}")
    print_line(f"calibration  that of the other labels; not fitted to {name}")
    if added.dropped_thresholds:
        print_line("label sets   left out: fit them again with `sightline evaluate --target-fnr`")


def _describe_split(added: AddedClass) -> str:
    return f"{plural(added.split_count, 'image')} of the {'run' if added.split != 'reference' else 'reference'}"
