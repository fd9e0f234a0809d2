"""`sightline explain`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from sightline.cli.output import Display, print_json, say
from sightline.cli.sources import FileLimit
from sightline.cli.streams import read_input
from sightline.explanation.result import Explanation


def explain(
    model: Annotated[str, typer.Argument(help="A run, a bundle, its .zip or .onnx file, or an exported folder.")],
    pictures: Annotated[list[str], typer.Argument(help="Files, folders, globs, or - for standard input.")],
    method: Annotated[
        str | None,
        typer.Option(
            help="gradcam, gradcam++, occlusion or rise; default gradcam, or occlusion for an exported model."
        ),
    ] = None,
    label: Annotated[
        str | None, typer.Option("--class", help="The class to explain; default: the predicted one.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The output folder; gets one PNG file per image.")] = Path("explanations"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random masks and positions.")] = 0,
    set: FileLimit = None,  # noqa: A002  # the option's own name
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per image.")] = False,
) -> None:
    """Show which regions of images support a class. Exits with 1 if an image could not be read."""
    from sightline import workflow
    from sightline.explanation.maps import method_for
    from sightline.prediction import stream
    from sightline.report import summary
    from sightline.workflow.explain import explain as find

    limits = stream.file_limits(set or ())
    items = list(stream.expand(pictures, partial(read_input, limits.file_mb), limits))
    failed = False
    with Display(quiet=json) as display:
        predictor = workflow.load(model).explained_by(method)
        if method is None and method_for(None, predictor) == "occlusion":
            display.say(
                "An exported model has no gradients; using occlusion instead of Grad-CAM (or pass --method rise)."
            )
        for found in find(predictor, items, method=method, label=label, out=out, seed=seed, progress=display.progress):
            failed |= found.error is not None
            if json:
                print_json(summary.explanation(found))
            else:
                _show(found)
    if failed:
        raise typer.Exit(1)


def _show(found: Explanation) -> None:
    if found.error is not None:
        say(f"{found.path}  ", (found.error, "red"))
        return
    say(f"{found.path}  ", (str(found.label), "bold"), f" {found.probability:.3f}")
    r, check, p = found.region, found.check, found.probability
    if r is None or check is None or p is None:
        say("  nothing in the image supports this class")
    else:
        say(f"  hottest region from ({r.left}, {r.top}) to ({r.right}, {r.bottom}), {r.share:.0%} of the heat")
        say(
            f"  {p - check.fall:.3f} with the hottest {check.hidden:.0%} hidden, "
            f"{p - check.random_fall:.3f} on average with the same shape hidden elsewhere"
        )
    say("  ", (str(found.figure), "dim"))
