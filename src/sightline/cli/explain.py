"""`sightline explain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sightline.cli.output import FormatOption, print_json, print_line
from sightline.cli.sources import FileLimit, list_images
from sightline.explain.explanation import Explanation
from sightline.progress import ProgressDisplay


def explain(
    model: Annotated[str, typer.Argument(help="A run, a bundle, its .zip or .onnx file, or an exported folder.")],
    images: Annotated[list[str], typer.Argument(help="Files, folders, globs, or - for standard input.")],
    method: Annotated[
        str | None,
        typer.Option(
            help="gradcam, gradcam++, occlusion or rise; default gradcam if it can be computed, else occlusion. Masks: "
            "gradcam or occlusion."
        ),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(
            "--class", help="The class to explain; default: the predicted one; for masks, the one with the most pixels."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="The output folder; gets one PNG file per image.")] = Path("explanations"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random masks and positions.")] = 0,
    set: FileLimit = None,  # noqa: A002  # the option's own name
    output_format: FormatOption = "text",
) -> None:
    """Show which regions of images support a class. Exits with 1 if an image could not be read."""
    from sightline.api.explanation import explain as find
    from sightline.api.loading import load
    from sightline.explain.heatmaps import resolve_method
    from sightline.inference.inputs import report_notes

    items = list(list_images("explain", images, set))
    failed = False
    with ProgressDisplay(quiet=output_format == "json") as display:
        classifier = load(model)
        predictor = classifier.explanation_predictor(method, display)
        if method is None and resolve_method(None, predictor) == "occlusion":
            advice = "" if classifier.task.targets.are_masks else " (or pass --method rise)"
            display.on_message(f"Grad-CAM cannot be computed from this exported model: using occlusion{advice}.")
        items = list(report_notes(items, display.on_message))
        for explanation in find(
            classifier, predictor, items, method=method, label=label, out=out, seed=seed, progress=display.on_progress
        ):
            failed |= explanation.error is not None
            if output_format == "json":
                print_json(explanation.to_dict())
            else:
                _print_explanation(explanation)
    if failed:
        raise typer.Exit(1)


def _print_explanation(explanation: Explanation) -> None:
    if explanation.error is not None:
        print_line(f"{explanation.path}  ", (explanation.error, "red"))
        return
    print_line(f"{explanation.path}  ", (str(explanation.label), "bold"), f" {explanation.probability:.3f}")
    for text in explanation.list_sentences():
        print_line(f"  {text}")
    print_line("  ", (str(explanation.figure), "dim"))
