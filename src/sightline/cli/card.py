"""`sightline card`."""

from __future__ import annotations

from typing import Annotated

import typer

from sightline.cli.output import print_json, print_lines, say


def card(
    run: Annotated[str, typer.Argument(help="A run directory.")],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write a model card in Hugging Face format into a run's bundle, and print it."""
    from sightline.workflow.card import card as write

    text, path = write(run)
    if json:
        print_json({"path": str(path), "card": text})
        return
    print_lines(text)
    say(f"written    {path}", stderr=True)
