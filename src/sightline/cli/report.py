"""`sightline report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sightline.cli.output import ProgressDisplay, print_json, print_line


def report(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    json: Annotated[bool, typer.Option("--json", help="Print the path of the report as one JSON object.")] = False,
) -> None:
    """Evaluate a run again and write its report, a single self-contained HTML page."""
    from sightline.api.reporting import rebuild_report

    with ProgressDisplay(quiet=json) as display:
        path = rebuild_report(run, progress=display.on_progress)
    if json:
        print_json({"report": str(path)})
    else:
        print_line(str(path))
