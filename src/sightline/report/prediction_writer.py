"""Write predictions as CSV rows or JSON lines, one at a time, as they arrive."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from sightline import jsonio
from sightline.data.targets import join_classes
from sightline.escaping import CsvWriter, TextFile, escape_formula
from sightline.inference.masks import MaskPrediction
from sightline.inference.results import Prediction

HEADER = ("path", "label", "probability")  # first columns of every CSV file of classes
AREA = "area:"  # prefix of a class in the name of a column
_Row = TypeVar("_Row")
_Row_contra = TypeVar("_Row_contra", contravariant=True)


class RowLayout(Protocol[_Row_contra]):
    """The format of the row for a prediction."""

    def column_names(self) -> list[str]:
        """Return the header of the CSV file."""

    def csv_row(self, prediction: _Row_contra) -> list[str]:
        """Return a row of the CSV file; an image without a prediction has its path and the reason."""

    def json_line(self, prediction: _Row_contra) -> str:
        """Return a row as JSON."""


@dataclass(frozen=True, slots=True)
class RowFormat:
    """The content of each row: the `top` most probable classes, and a probability for each of `classes` (may be empty).

    With `decisions`, rows include the decision of a model that has thresholds. `sets` are the fields of a prediction
    with sets of classes that have a column each: undecided, label_set. With `quality`, rows are for masks: they have a
    column for it, and decisions have neither a set nor an out-of-distribution score. With `nodes`, there are columns
    for the node of a hierarchical model, whose decision has no set; with `grades`, a column for the expected grade. In
    CSV, text that a spreadsheet would read as a formula gets an apostrophe, unless `raw`.
    """

    top: int = 1
    classes: tuple[str, ...] = ()
    decisions: bool = False
    raw: bool = False
    sets: tuple[str, ...] = ()
    quality: bool = False
    nodes: bool = False
    grades: bool = False

    def column_names(self) -> list[str]:
        """Return the header of the CSV file."""
        more = [name for number in range(2, self.top + 1) for name in (f"label_{number}", f"probability_{number}")]
        decided = ["decision", *([] if self.quality else ["set", "ood_score", "is_ood"])] if self.decisions else []
        decided += ["quality"] if self.quality else []
        decided += ["node", "node_probability"] if self.nodes else []
        decided += ["expected_grade"] if self.grades else []
        return [*HEADER, *more, *decided, *self.sets, *(f"probability:{label}" for label in self.classes), "error"]

    def csv_row(self, prediction: Prediction) -> list[str]:
        """Return a row of the CSV file; an image without a prediction has its path and the reason."""
        if prediction.error is not None:
            empty = [""] * (len(self.column_names()) - 2)
            return [self._text(prediction.path), *empty, self._text(prediction.error)]
        ranked = [cell for c in prediction.top[: self.top] for cell in (self._text(c.label), f"{c.probability:.6f}")]
        if prediction.labels is not None:
            probability = "" if prediction.probability is None else f"{prediction.probability:.6f}"
            ranked[:2] = [self._text(prediction.label or ""), probability]
        return [
            self._text(prediction.path),
            *ranked,
            *self._decision_cells(prediction),
            *(self._text(join_classes(getattr(prediction, name) or ())) for name in self.sets),
            *(f"{p:.7g}" for p in self._probabilities(prediction)),
            "",
        ]

    def _decision_cells(self, prediction: Prediction) -> list[str]:
        cells: list[str] = []
        if self.decisions and prediction.decision is not None:
            decision = prediction.decision
            labels = "" if decision.set is None else jsonio.dumps(list(decision.set))
            score = "" if decision.ood_score is None else f"{decision.ood_score:.6g}"
            more = [] if self.quality else [labels, score, str(decision.is_ood).lower()]
            cells = [decision.decision, *more]
        if self.quality:
            cells.append("" if prediction.quality is None else f"{prediction.quality:.6f}")
        if self.nodes:
            probability = prediction.node_probability
            cells += [self._text(prediction.node or ""), "" if probability is None else f"{probability:.6f}"]
        if self.grades:
            cells.append("" if prediction.expected_grade is None else f"{prediction.expected_grade:.6f}")
        return cells

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


@dataclass(frozen=True, slots=True)
class MaskRowFormat:
    """Rows for masks: the area of each of `classes` as a fraction, the quality, the decision and the file of the mask.

    `raw` is as above.
    """

    classes: tuple[str, ...]
    raw: bool = False

    def column_names(self) -> list[str]:
        """Return the header of the CSV file."""
        return ["path", *(f"{AREA}{label}" for label in self.classes), "quality", "decision", "file", "error"]

    def csv_row(self, prediction: MaskPrediction) -> list[str]:
        """Return a row of the CSV file; an image without a mask has its path and the reason."""
        texts = [prediction.path, prediction.file or "", prediction.error or ""]
        path, name, error = texts if self.raw else map(escape_formula, texts)
        areas = dict(prediction.areas)
        cells = ["" if prediction.error is not None else f"{areas.get(label, 0):.6f}" for label in self.classes]
        quality = "" if prediction.quality is None else f"{prediction.quality:.6f}"
        return [path, *cells, quality, prediction.decision or "", name, error]

    def json_line(self, prediction: MaskPrediction) -> str:
        """Return a row as JSON, with the areas of the classes in the mask."""
        return jsonio.dumps(prediction.to_dict())


def write_csv(predictions: Iterable[_Row], layout: RowLayout[_Row], file: TextFile) -> Iterator[_Row]:
    """Write a header and a row for each prediction, and yield each once its row is written."""
    writer = CsvWriter(file)
    writer.write_row(layout.column_names())
    return _write_each(predictions, lambda prediction: writer.write_row(layout.csv_row(prediction)), file)


def write_jsonl(predictions: Iterable[_Row], layout: RowLayout[_Row], file: TextFile) -> Iterator[_Row]:
    """Write a JSON object on a line for each prediction, and yield each once its line is written."""
    encoding = getattr(file, "encoding", None)

    def write(prediction: _Row) -> object:
        return file.write(jsonio.fit_encoding(layout.json_line(prediction), encoding) + "\n")

    return _write_each(predictions, write, file)


def _write_each(predictions: Iterable[_Row], write: Callable[[_Row], object], file: TextFile) -> Iterator[_Row]:
    for prediction in predictions:
        write(prediction)
        file.flush()
        yield prediction


def is_prediction_file(start: bytes) -> bool:
    """Return whether a file that starts with `start` was written here, which may be true of an empty file.

    >>> (
    ...     is_prediction_file(b"path,label,probability,error"),
    ...     is_prediction_file(b"path,area:sky,quality,decision,file,error"),
    ...     is_prediction_file(b"path,label"),
    ...     is_prediction_file(b'{"path": "a.png", "label"'),
    ... )
    (True, True, False, True)
    """
    headers = ",".join(HEADER) + ",", f"path,{AREA}", f'path,"{AREA}'
    known: Sequence[bytes] = (*(header.encode() for header in headers), b'{"path": ')
    return not start or start.startswith(tuple(known))
