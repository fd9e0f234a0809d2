"""`sightline doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sightline.cli.output import Cell, Display, print_json, say, table
from sightline.cli.sources import Allow, Column, Read, Sources, reading
from sightline.errors import plural

if TYPE_CHECKING:  # annotations only: --help must not import NumPy
    from sightline.data.finding import Finding
    from sightline.workflow.doctor import Checkup

EXAMPLES, OF_ERRORS = 2, 5  # shown per finding


def doctor(
    data: Sources,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write an HTML report with thumbnails.")] = None,
    fix: Annotated[
        Path | None, typer.Option(metavar="PATCH.jsonl", help="Write proposed fixes to this file, for train --patch.")
    ] = None,
    patch: Annotated[Path | None, typer.Option(metavar="PATCH.jsonl", help="Apply these fixes first.")] = None,
    column: Column = None,
    allow: Allow = None,
    set: Read = None,  # noqa: A002  # the option's own name
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 if there are errors not listed in --allow.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print all findings as one JSON object.")] = False,
) -> None:
    """Check a dataset for problems before training; never changes the data."""
    from sightline.workflow.doctor import doctor as look

    with Display(quiet=json) as display:
        settings = reading(column, allow, set, ("data.", "picture."))
        found = look(
            data, html=html, fix=fix, patch=patch, options=settings.data, picture=settings.picture, watcher=display
        )
    if json:
        files = {"html": found.html, "patch": found.patch, "corrections": found.corrections}
        print_json(found.audit.to_dict() | files)
    else:
        show(found)
    if strict and any(f.severity == "error" and f.kind not in (allow or ()) for f in found.audit.findings):
        raise typer.Exit(1)


def show(found: Checkup) -> None:
    """Print the findings as a table, followed by advice on each."""
    audit = found.audit
    findings = audit.findings
    splits = ", ".join(f"{count:,} {name}" for name, count in audit.splits.items())
    what = f"{plural(audit.count, 'image')} in {plural(len(audit.classes), 'class', 'classes')}"
    say(f"{audit.name}: {what}{splits and f' ({splits})'}")
    if findings:
        rows: list[list[Cell]] = [[f.severity, f.kind, str(f.count), f.what, _examples(f)] for f in findings]
        table(["severity", "kind", "count", "what", "examples"], rows, right=["count"])
        say()
        for finding in findings:
            say(f"{finding.kind}: {finding.advice}")
    else:
        say("nothing found")
    for name, path in (("page", found.html), ("patch", found.patch)):
        if path is not None:
            count = (
                f" ({plural(found.corrections, 'correction')}: `train --patch` applies them)" if name == "patch" else ""
            )
            say(f"{name:<11}{path}{count}")


def _examples(finding: Finding) -> list[str]:
    """Return the first groups, or the first paths with their reasons, one line each."""
    if finding.groups:
        lines = [", ".join(group[:3]) + (", ..." if len(group) > 3 else "") for group in finding.groups]
    elif finding.reasons:
        lines = [f"{path}: {reason}" for path, reason in zip(finding.paths, finding.reasons, strict=True)]
    else:
        lines = list(finding.paths)
    most = OF_ERRORS if finding.severity == "error" else EXAMPLES
    more = [f"and {len(lines) - most} more"] if len(lines) > most else []
    return [*lines[:most], *more]
