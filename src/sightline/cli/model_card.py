"""`sightline model-card`."""

from __future__ import annotations

from typing import Annotated

import typer

from sightline.cli.output import FormatOption, print_json, print_line, print_text


def model_card(
    run: Annotated[str, typer.Argument(help="A run directory.")], output_format: FormatOption = "text"
) -> None:
    """Write a model card in Hugging Face format into a run's bundle, and print it."""
    from sightline.api.report_writer import write_model_card

    text, path = write_model_card(run)
    if output_format == "json":
        print_json({"path": str(path), "card": text})
        return
    print_text(text)
    print_line(f"written    {path}", stderr=True)
