"""`sightline report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sightline.cli.output import Display, print_json, say


def report(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    json: Annotated[bool, typer.Option("--json", help="Print the path of the report as one JSON object.")] = False,
) -> None:
    """Evaluate a run again and write its report, a single self-contained HTML page."""
    from sightline.workflow import reporting

    with Display(quiet=json) as display:
        path = reporting.make(run, progress=display.progress)
    if json:
        print_json({"report": str(path)})
    else:
        say(str(path))
