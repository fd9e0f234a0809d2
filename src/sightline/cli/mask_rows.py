"""The rows of `sightline predict --masks`: the area of each class in the mask of an image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from sightline import jsonio
from sightline.cli.output import TableFormat, print_line, results_stream
from sightline.escaping import CsvWriter, escape_formula, printable

if TYPE_CHECKING:  # annotations only: --help must not import NumPy
    from sightline.inference.masks import MaskPrediction

MAX_SHOWN = 5  # classes in a row of text


def print_masks(
    predictions: Iterable[MaskPrediction], classes: Sequence[str], output_format: TableFormat, *, raw: bool = False
) -> int:
    """Print a row for each mask as it is ready; return the number of images without one.

    CSV has a column of the fraction of the pixels of each class, and the quality and the decision of each mask; text
    that a spreadsheet would take for a formula gets an apostrophe, unless `raw`.
    """
    errors = 0
    stream = results_stream()
    writer = CsvWriter(stream) if output_format == TableFormat.csv else None
    if writer is not None:
        writer.write_row(["path", *(f"area:{label}" for label in classes), "quality", "decision", "error"])
    for prediction in predictions:
        errors += prediction.error is not None
        if writer is not None:
            areas = dict(prediction.areas)
            cells = ["" if prediction.error is not None else f"{areas.get(label, 0):.6f}" for label in classes]
            path, error = prediction.path, prediction.error or ""
            quality = "" if prediction.quality is None else f"{prediction.quality:.6f}"
            decided = [quality, prediction.decision or ""]
            writer.write_row([*([path] if raw else [escape_formula(path)]), *cells, *decided, error])
        elif output_format == TableFormat.json:
            stream.write(jsonio.dumps(prediction.to_dict()) + "\n")
        elif prediction.error is not None:
            print_line(f"{printable(prediction.path)}  ", (prediction.error, "red"))
        else:
            listed = ", ".join(f"{label} {area:.1%}" for label, area in prediction.areas[:MAX_SHOWN])
            abstains = "  abstain" if prediction.decision == "abstain" else ""
            print_line(
                f"{printable(prediction.path)}  ", listed, (f"  quality {prediction.quality:.3f}", "dim"), abstains
            )
        stream.flush()
    return errors
