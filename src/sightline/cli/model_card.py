"""`sightline card`."""

from __future__ import annotations

from typing import Annotated

import typer

from sightline.cli.output import print_json, print_line, print_text


def card(
    run: Annotated[str, typer.Argument(help="A run directory.")],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write a model card in Hugging Face format into a run's bundle, and print it."""
    from sightline.api.model_card import write_model_card as write

    text, path = write(run)
    if json:
        print_json({"path": str(path), "card": text})
        return
    print_text(text)
    print_line(f"written    {path}", stderr=True)
