"""`sightline predict`."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from enum import StrEnum
from itertools import chain
from typing import Annotated

import typer

from sightline.cli.output import console, escape, print_json
from sightline.records import Decision, Prediction


class Form(StrEnum):
    """How predictions are printed."""

    table = "table"
    csv = "csv"
    jsonl = "jsonl"


def predict(
    model: Annotated[str, typer.Argument(help="A run, a bundle, its .zip or .onnx file, or an exported folder.")],
    pictures: Annotated[list[str], typer.Argument(help="Files, folders, globs, or - for standard input.")],
    top: Annotated[int, typer.Option(min=1, help="So many classes for each picture.")] = 5,
    form: Annotated[Form, typer.Option("--format", help="table, csv or jsonl.")] = Form.table,
    json: Annotated[bool, typer.Option("--json", help="The same as --format jsonl.")] = False,
) -> None:
    """Name pictures. Exits with 1 if one of them could not be read; its row says why."""
    from sightline import workflow
    from sightline.prediction import stream

    items = stream.expand(pictures, stdin=sys.stdin.buffer.read)
    first = stream.peek(items)  # a wrong path or an empty folder shows before the model is loaded
    classifier = workflow.load(model)
    best = min(top, len(classifier.classes))
    found = stream.predict(classifier.predictor, chain(first, items), top=best, thresholds=classifier.thresholds)
    printer = {Form.table: _table, Form.csv: _csv, Form.jsonl: _jsonl}[Form.jsonl if json else form]
    if printer(found):
        raise typer.Exit(1)


def _jsonl(found: Iterator[Prediction]) -> int:
    from sightline.report import summary

    errors = 0
    for prediction in found:
        errors += prediction.error is not None
        print_json(summary.prediction(prediction))
    return errors


def _csv(found: Iterator[Prediction]) -> int:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["path", "label", "probability", "error"])
    errors = 0
    for p in found:
        errors += p.error is not None
        writer.writerow([p.path, p.label or "", "" if p.probability is None else f"{p.probability:.6f}", p.error or ""])
    return errors


def _table(found: Iterator[Prediction]) -> int:
    """Print a row as soon as it is known; the width of the path column follows from what came so far."""
    out = console()
    errors, width = 0, 12
    for p in found:
        width = max(width, len(p.path))
        name = escape(f"{p.path:<{width}}")
        if p.error is not None:
            errors += 1
            out.print(f"{name}  [red]{escape(p.error)}[/]")
            continue
        others = ", ".join(f"{c.label} {c.probability:.3f}" for c in p.top[1:])
        decision = "" if p.decision is None or p.decision.decision == "class" else f"  {_words(p.decision)}"
        out.print(f"{name}  [bold]{escape(str(p.label))}[/] {p.probability:.3f}  [dim]{escape(others)}[/]{decision}")
    return errors


def _words(decision: Decision) -> str:
    return f"one of {escape(', '.join(decision.set or ()))}" if decision.decision == "set" else "do not trust it"
