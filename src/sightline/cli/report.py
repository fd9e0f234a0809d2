"""`sightline report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sightline.cli.output import FormatOption, print_json, print_line


def report(run: Annotated[Path, typer.Argument(help="A run directory.")], output_format: FormatOption = "text") -> None:
    """Write the report of a run again, from the files of the run: a single self-contained HTML page."""
    from sightline.api.report_writer import rebuild_report

    path = rebuild_report(run)
    if output_format == "json":
        print_json({"report": str(path)})
    else:
        print_line(str(path))
