"""`sightline pull`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sightline.cli.output import FormatOption, print_json, print_line
from sightline.errors import plural
from sightline.progress import ProgressDisplay


def pull(
    source: Annotated[str, typer.Argument(metavar="hf:USER/NAME[@REVISION]", help="The model on the Hub.")],
    dest: Annotated[Path, typer.Argument(help="The folder to write the bundle to; new or empty.")],
    output_format: FormatOption = "text",
) -> None:
    """Download a bundle from the Hugging Face Hub, and verify it before any of it is opened."""
    from sightline.api.hub import pull as run

    with ProgressDisplay(quiet=output_format == "json") as display:
        classifier = run(source, dest, callback=display)
    if output_format == "json":
        print_json({"path": str(dest), "classes": list(classifier.classes)})
        return
    print_line(
        f"written    {dest}: {plural(len(classifier.classes), 'class', 'classes')}; sightline predict {dest} IMAGE"
    )
