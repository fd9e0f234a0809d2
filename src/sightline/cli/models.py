"""`sightline models`."""

from __future__ import annotations

from sightline.cli.output import RawCsv, TableFormatOption, print_csv, print_json, print_table
from sightline.models.registry import ENTRIES


def models(output_format: TableFormatOption = "text", raw_csv: RawCsv = False) -> None:
    """List the available networks."""
    if output_format == "text":
        cells = [
            [e.name, str(e.input_size), "ImageNet" if e.pretrained else "", e.description] for e in ENTRIES.values()
        ]
        print_table(["model", "size", "weights", "description"], cells, right=["size"])
        return
    keys = ("name", "description", "reference", "input_size", "min_input_size", "normalize")
    rows = [{k: getattr(e, k) for k in keys} | {"pretrained": e.pretrained is not None} for e in ENTRIES.values()]
    if output_format == "csv":
        print_csv([*keys, "pretrained"], (list(row.values()) for row in rows), raw=raw_csv)
    else:
        print_json({"models": rows})
