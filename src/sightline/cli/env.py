"""`sightline env`."""

from __future__ import annotations

from typing import Annotated

import typer

from sightline.cli.output import print_json, table


def env(json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Show versions, devices, memory, caches, and which backend is used and why."""
    from sightline.workflow.environment import environment, fonts_by_script

    found = environment()
    found["fonts in figures"] = fonts_by_script()
    if json:
        print_json(found)
        return
    rows = [
        [key, ", ".join(map(str, value)) if isinstance(value, list) else str(value)]
        for key, value in found.items()
        if key != "versions"
    ]
    rows += [[f"  {name}", version] for name, version in found["versions"].items()]
    table(["", ""], rows)
