"""`sightline report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sightline.cli.output import FormatOption, OutputFormat, ProgressDisplay, print_json, print_line


def report(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    output_format: FormatOption = OutputFormat.text,
) -> None:
    """Evaluate a run again and write its report, a single self-contained HTML page."""
    from sightline.api.reporting import rebuild_report

    with ProgressDisplay(quiet=output_format == OutputFormat.json) as display:
        path = rebuild_report(run, progress=display.on_progress)
    if output_format == OutputFormat.json:
        print_json({"report": str(path)})
    else:
        print_line(str(path))
