"""`sightline models`."""

from __future__ import annotations

from sightline.cli.output import FormatOption, OutputFormat, print_json, print_table
from sightline.models.registry import ENTRIES


def models(output_format: FormatOption = OutputFormat.text) -> None:
    """List the available networks."""
    if output_format == OutputFormat.json:
        keys = ("name", "description", "reference", "input_size", "min_input_size", "normalize")
        rows = [{k: getattr(e, k) for k in keys} | {"pretrained": e.pretrained is not None} for e in ENTRIES.values()]
        print_json({"models": rows})
        return
    rows_ = [[e.name, str(e.input_size), "ImageNet" if e.pretrained else "", e.description] for e in ENTRIES.values()]
    print_table(["model", "size", "weights", "description"], rows_, right=["size"])
