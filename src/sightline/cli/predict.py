"""`sightline predict`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from enum import StrEnum
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sightline.cli.output import results, say
from sightline.cli.sources import FileLimit
from sightline.cli.streams import read_input
from sightline.errors import OutputError, UsageError, plural
from sightline.escaping import TextFile, printable
from sightline.files import open_regular
from sightline.records import Decision, Prediction

if TYPE_CHECKING:  # annotations only: --help must not import NumPy
    from sightline.report.predictions import Layout

TOP = 5  # classes shown in a table and in JSON lines; CSV defaults to one


class Form(StrEnum):
    """How predictions are printed."""

    table = "table"
    csv = "csv"
    jsonl = "jsonl"


def predict(
    model: Annotated[str, typer.Argument(help="A run, a bundle, its .zip or .onnx file, or an exported folder.")],
    pictures: Annotated[list[str], typer.Argument(help="Files, folders, globs, or - for standard input.")],
    top: Annotated[
        int | None, typer.Option(min=1, help="Number of most probable classes per image; default: 5, or 1 for CSV.")
    ] = None,
    probabilities: Annotated[
        bool,
        typer.Option("--probabilities", help="Include the probabilities of all classes; in CSV, one column per class."),
    ] = False,
    form: Annotated[
        Form | None, typer.Option("--format", help="Output format; default: from the suffix of --out, else table.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Same as --format jsonl.")] = False,
    raw_csv: Annotated[
        bool, typer.Option("--raw-csv", help="Do not escape CSV text that starts with =, +, - or @ with an apostrophe.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write to this .csv or .jsonl file instead of standard output.")
    ] = None,
    set: FileLimit = None,  # noqa: A002  # the option's own name
) -> None:
    """Classify images. Exits with 1 if an image could not be read; its row says why."""
    from sightline import workflow
    from sightline.prediction import stream
    from sightline.report.predictions import Layout

    chosen = _form(form, out, json=json)
    if out is not None:
        _check_place(out)
    limits = stream.file_limits(set or ())
    items = stream.expand(pictures, partial(read_input, limits.file_mb), limits)
    first = stream.peek(items)  # report a wrong path or an empty folder before loading the model
    classifier = workflow.load(model)
    count, thresholds = len(classifier.classes), classifier.thresholds
    shown = min(count, top or (1 if chosen == Form.csv else TOP))
    layout = Layout(shown, classifier.classes if probabilities else (), thresholds is not None, raw_csv)
    asked = count if probabilities else shown
    predictions = stream.predict(classifier.predictor, chain(first, items), top=asked, thresholds=thresholds)
    if chosen == Form.table:
        failed = _count_errors(_table(predictions))[1]
    elif out is None:
        failed = _count_errors(_rows(chosen)(predictions, layout, results()))[1]
    else:
        failed = _write(predictions, layout, chosen, out)
    if failed:
        raise typer.Exit(1)


def _form(form: Form | None, out: Path | None, *, json: bool) -> Form:
    """Return the format that the options ask for; raises `UsageError` if they contradict each other."""
    if json and form not in {None, Form.jsonl}:
        raise UsageError(f"--json and --format {form} contradict each other: give one of them.")
    form = Form.jsonl if json else form
    if out is None:
        return form or Form.table
    if form == Form.table:
        raise UsageError("--out writes CSV or JSON lines: give --format csv or jsonl, or redirect the table with `>`.")
    if form is not None:
        return form
    by_suffix = {".csv": Form.csv, ".jsonl": Form.jsonl, ".ndjson": Form.jsonl}
    if out.suffix.lower() not in by_suffix:
        raise UsageError(f"--out {out} should end with .csv or .jsonl, or give --format csv or jsonl as well.")
    return by_suffix[out.suffix.lower()]


def _check_place(out: Path) -> None:
    """Raise `OutputError` if `out` exists and was not written by `predict`."""
    from sightline.report import predictions

    if out.is_dir():
        raise OutputError(f"{out} is a folder: name a file in it with --out.")
    try:
        with open_regular(out) as file:
            ours = predictions.is_result(file.read(100))
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(f"{out} cannot be read: {error.strerror}. Name another file with --out.") from error
    if not ours:
        raise OutputError(f"{out} exists and is not a result of predict: name another file with --out.")


def _rows(form: Form) -> Callable[[Iterator[Prediction], Layout, TextFile], Iterator[Prediction]]:
    from sightline.report import predictions

    return predictions.write_csv if form == Form.csv else predictions.write_jsonl


def _count_errors(predictions: Iterator[Prediction]) -> tuple[int, int]:
    """Return the number of predictions and of errors among them."""
    total = errors = 0
    for prediction in predictions:
        total += 1
        errors += prediction.error is not None
    return total, errors


def _write(predictions: Iterator[Prediction], layout: Layout, form: Form, out: Path) -> int:
    """Write all predictions to `out`, atomically; return the number of errors among them."""
    from sightline import files

    total = errors = 0

    def fill(aside: Path) -> None:
        nonlocal total, errors
        with aside.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            total, errors = _count_errors(_rows(form)(predictions, layout, file))
            os.fsync(file.fileno())

    files.write(out, fill)
    unread = f", {errors} of them failed" if errors else ""
    say(f"{plural(total, 'image')}{unread}: {out}", stderr=True)
    return errors


def _table(predictions: Iterator[Prediction]) -> Iterator[Prediction]:
    """Print each row as soon as it is known, with the path column as wide as the longest path so far."""
    width = 12
    for p in predictions:
        name = printable(p.path)
        width = max(width, len(name))
        name = f"{name:<{width}}  "
        if p.error is not None:
            say(name, (p.error, "red"))
        else:
            others = ", ".join(f"{c.label} {c.probability:.3f}" for c in p.top[1:])
            decision = "" if p.decision is None or p.decision.decision == "class" else f"  {_words(p.decision)}"
            say(name, (str(p.label), "bold"), f" {p.probability:.3f}  ", (others, "dim"), decision)
        yield p


def _words(decision: Decision) -> str:
    return f"one of {', '.join(decision.set or ())}" if decision.decision == "set" else "abstain"
