"""Predictions as rows of CSV and as JSON lines, one at a time, as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from sightline import jsonio
from sightline.data.targets import join_classes
from sightline.escaping import CsvWriter, TextFile, escape_formula
from sightline.inference.results import Prediction

HEADER = ("path", "label", "probability")  # of every CSV file, first


@dataclass(frozen=True, slots=True)
class RowFormat:
    """What each row holds: the `top` most probable classes; `classes`, which get a probability each (none: empty).

    With `decisions`, what to make of the answer, for a model that has thresholds. `sets` are the fields of a prediction
    with sets of classes that have a column each: undecided, label_set. With `quality`, that of a mask has a column. In
    CSV, text that a spreadsheet would take for a formula gets an apostrophe, unless `raw`.
    """

    top: int = 1
    classes: tuple[str, ...] = ()
    decisions: bool = False
    raw: bool = False
    sets: tuple[str, ...] = ()
    quality: bool = False

    def column_names(self) -> list[str]:
        """Return the header of the CSV file."""
        more = [name for number in range(2, self.top + 1) for name in (f"label_{number}", f"probability_{number}")]
        decided = ["decision", "set", "ood_score"] if self.decisions else []
        decided += ["quality"] if self.quality else []
        return [*HEADER, *more, *decided, *self.sets, *(f"probability:{label}" for label in self.classes), "error"]

    def csv_row(self, prediction: Prediction) -> list[str]:
        """Return a row of the CSV file; an image without an answer has its path and the reason."""
        if prediction.error is not None:
            empty = [""] * (len(self.column_names()) - 2)
            return [self._text(prediction.path), *empty, self._text(prediction.error)]
        ranked = [cell for c in prediction.top[: self.top] for cell in (self._text(c.label), f"{c.probability:.6f}")]
        if prediction.labels is not None:
            probability = "" if prediction.probability is None else f"{prediction.probability:.6f}"
            ranked[:2] = [self._text(prediction.label or ""), probability]
        decision_cells: list[str] = []
        if self.decisions and prediction.decision is not None:
            decision = prediction.decision
            labels = "" if decision.set is None else jsonio.dumps(list(decision.set))
            score = "" if decision.ood_score is None else f"{decision.ood_score:.6g}"
            decision_cells = [decision.decision, labels, score]
        if self.quality:
            decision_cells.append("" if prediction.quality is None else f"{prediction.quality:.6f}")
        return [
            self._text(prediction.path),
            *ranked,
            *decision_cells,
            *(self._text(join_classes(getattr(prediction, name) or ())) for name in self.sets),
            *(f"{p:.7g}" for p in self._probabilities(prediction)),
            "",
        ]

    def json_line(self, prediction: Prediction) -> str:
        """Return a row as JSON."""
        values = prediction.to_dict()
        if prediction.error is None:
            values["top"] = values["top"][: self.top]
            if self.classes:
                values["probabilities"] = dict(zip(self.classes, self._probabilities(prediction), strict=True))
        return jsonio.dumps(values)

    def _text(self, text: str) -> str:
        return text if self.raw else escape_formula(text)

    def _probabilities(self, prediction: Prediction) -> list[float]:
        by_label = {c.label: c.probability for c in prediction.top}
        return [by_label[label] for label in self.classes]


def write_csv(predictions: Iterable[Prediction], layout: RowFormat, file: TextFile) -> Iterator[Prediction]:
    """Write a header and a row for each prediction, and yield each once its row is written."""
    writer = CsvWriter(file)
    writer.write_row(layout.column_names())
    return _write_each(predictions, lambda prediction: writer.write_row(layout.csv_row(prediction)), file)


def write_jsonl(predictions: Iterable[Prediction], layout: RowFormat, file: TextFile) -> Iterator[Prediction]:
    """Write a JSON object on a line for each prediction, and yield each once its line is written."""
    return _write_each(predictions, lambda prediction: file.write(layout.json_line(prediction) + "\n"), file)


def _write_each(
    predictions: Iterable[Prediction], write: Callable[[Prediction], object], file: TextFile
) -> Iterator[Prediction]:
    for prediction in predictions:
        write(prediction)
        file.flush()
        yield prediction


def is_prediction_file(start: bytes) -> bool:
    """Tell whether a file that starts with `start` was written here; an empty one may as well have been.

    >>> (
    ...     is_prediction_file(b"path,label,probability,error"),
    ...     is_prediction_file(b"path,label"),
    ...     is_prediction_file(b'{"path": "a.png", "label"'),
    ... )
    (True, False, True)
    """
    known: Sequence[bytes] = (",".join(HEADER).encode() + b",", b'{"path": ')
    return not start or start.startswith(tuple(known))
