"""`sightline doctor`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sightline.api.options import data_assignments
from sightline.cli.output import Cell, RawCsv, TableFormat, csv_format, print_csv, print_json, print_line, print_table
from sightline.cli.sources import Allow, Column, ReadSettings, Sources
from sightline.errors import list_some, plural
from sightline.progress import ProgressDisplay

if TYPE_CHECKING:  # annotations only: --help must not import NumPy
    from sightline.api.doctor import DoctorReport
    from sightline.data.checks.finding import Finding

EXAMPLES, ERROR_EXAMPLES = 2, 5  # shown per finding


def doctor(
    data: Sources,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write an HTML report with thumbnails.")] = None,
    write_fixes: Annotated[
        Path | None, typer.Option(metavar="PATCH.jsonl", help="Write proposed fixes to this file, for train --patch.")
    ] = None,
    patch: Annotated[Path | None, typer.Option(metavar="PATCH.jsonl", help="Apply these fixes first.")] = None,
    write_folders: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Write links to the images, with fixes applied, to a folder per class and split."
        ),
    ] = None,
    column: Column = None,
    allow: Allow = None,
    set: ReadSettings = None,  # noqa: A002  # the option's own name
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 if there are errors not listed in --allow.")
    ] = False,
    output_format: Annotated[TableFormat, csv_format("image, class or folder found")] = "text",
    raw_csv: RawCsv = False,
) -> None:
    """Check a data set for problems before training; the images are never changed."""
    from sightline.api.dataset import Dataset

    with ProgressDisplay(quiet=output_format != "text") as display:
        dataset = Dataset(data, set=[*(set or ()), *data_assignments(column, allow)])
        checkup = dataset.check(
            html=html, write_fixes=write_fixes, patch=patch, write_folders=write_folders, callback=display
        )
    if output_format == "json":
        print_json(checkup.to_dict())
    elif output_format == "csv":
        columns = ["severity", "kind", "finding", "group", "path", "label", "reason"]
        print_csv(columns, (row for finding in checkup.audit.findings for row in _csv_rows(finding)), raw=raw_csv)
    else:
        print_findings(checkup)
    allowed = dataset.config.data.allow_findings
    if strict and any(f.severity == "error" and f.kind not in allowed for f in checkup.audit.findings):
        raise typer.Exit(1)


def print_findings(checkup: DoctorReport) -> None:
    """Print the findings as a table, followed by advice on each."""
    audit = checkup.audit
    findings = audit.findings
    splits = ", ".join(f"{count:,} {name}" for name, count in audit.splits.items())
    what = f"{plural(audit.count, 'image')} in {plural(len(audit.classes), 'class', 'classes')}"
    print_line(f"{audit.name}: {what}{splits and f' ({splits})'}")
    if findings:
        rows: list[list[Cell]] = [[f.severity, f.kind, str(f.count), f.description, _examples(f)] for f in findings]
        print_table(["severity", "kind", "count", "what", "examples"], rows, right=["count"])
        print_line()
        for finding in findings:
            print_line(f"{finding.kind}: {finding.advice}")
    else:
        print_line("nothing found")
    for name, path in (("page", checkup.html), ("patch", checkup.patch)):
        if path is not None:
            count = (
                f" ({plural(checkup.corrections, 'correction')}: `train --patch` applies them)"
                if name == "patch"
                else ""
            )
            print_line(f"{name:<11}{path}{count}")
    if checkup.folders is not None:
        print_line(f"{'folders':<11}{checkup.folders.path} ({checkup.folders})")


def _csv_rows(finding: Finding) -> Iterator[list[object]]:
    """Yield a row per image, class or folder; the images of a group share its number, from 1."""
    start = [finding.severity, finding.kind, f"{finding.count:,} {finding.description}"]
    for number, (paths, labels) in enumerate(zip(finding.groups, finding.labels, strict=True), 1):
        for path, label in zip(paths, labels, strict=True):
            yield [*start, number, path, label, None]
    for path, reason in zip(finding.paths, finding.reasons or [None] * len(finding.paths), strict=True):
        yield [*start, None, path, None, reason]
    if not (finding.groups or finding.paths):
        yield [*start, None, None, None, None]


def _examples(finding: Finding) -> list[str]:
    """Return the first groups, or the first paths with their reasons, one line each."""
    if finding.groups:
        lines = [list_some(group, 3) for group in finding.groups]
    elif finding.reasons:
        lines = [
            f"{path}: {reason}" if reason else path for path, reason in zip(finding.paths, finding.reasons, strict=True)
        ]
    else:
        lines = list(finding.paths)
    limit = ERROR_EXAMPLES if finding.severity == "error" else EXAMPLES
    rest = [f"and {len(lines) - limit} more"] if len(lines) > limit else []
    return [*lines[:limit], *rest]
