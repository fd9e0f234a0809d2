"""The rows of a Parquet file with predictions: their columns and cells."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from sightline import jsonio
from sightline.errors import require
from sightline.escaping import escape_surrogates
from sightline.inference.results import Prediction

SCHEMA = 1
PURPOSE = "Writing Parquet"


@dataclass(frozen=True, slots=True)
class PredictionFormat:
    """The columns of the rows, and the model that predicts them.

    `model` identifies the model, `rows` is the number of images per part, `top` the number of most probable classes per
    row. With `probabilities`, a row contains the probabilities of all `classes`; with `decisions`, the decision of the
    thresholds; with `several_labels`, the predicted labels and the class sets that the thresholds produce (`sets` are
    the names of their fields); with `quality`, the quality of a mask, whose decision has neither a set nor an
    out-of-distribution score; with `nodes`, the node of a hierarchical model; with `grades`, the expected grade.
    """

    model: str
    classes: tuple[str, ...]
    rows: int
    top: int = 5
    probabilities: bool = False
    decisions: bool = False
    several_labels: bool = False
    sets: tuple[str, ...] = ()
    quality: bool = False
    nodes: bool = False
    grades: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {"schema": SCHEMA, **jsonio.fields_to_dict(self)}

    @property
    def sha256(self) -> str:
        """A hash of all fields, stored in each part."""
        return hashlib.sha256(jsonio.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()


def make_schema(form: PredictionFormat) -> Any:
    """Return the pyarrow schema of a part."""
    pyarrow = require("pyarrow", PURPOSE)
    text, number = pyarrow.string(), pyarrow.float32()  # the outputs of a network are float32
    fields = [("path", text), ("label", text), ("probability", number)]
    fields.append(("top", pyarrow.list_(pyarrow.struct([("label", text), ("probability", number)]))))
    if form.several_labels:
        fields += [(name, pyarrow.list_(text)) for name in ("labels", *form.sets)]
    if form.decisions:
        fields.append(("decision", text))
    if form.decisions and not form.quality:
        fields += [("set", pyarrow.list_(text)), ("ood_score", pyarrow.float64()), ("is_ood", pyarrow.bool_())]
    if form.quality:
        fields.append(("quality", pyarrow.float64()))
    if form.nodes:
        fields += [("node", text), ("node_probability", pyarrow.float64())]
    if form.grades:
        fields.append(("expected_grade", pyarrow.float64()))
    if form.probabilities:
        fields.append(("probabilities", pyarrow.list_(number, len(form.classes))))
    return pyarrow.schema([*fields, ("error", text)])


def make_row(prediction: Prediction, form: PredictionFormat) -> dict[str, Any]:
    """Return the cells of a row by column; missing cells are null."""
    if prediction.error is not None:
        return {"path": escape_surrogates(prediction.path), "error": escape_surrogates(prediction.error)}
    row = prediction.to_dict() | {"path": escape_surrogates(prediction.path)}
    if form.probabilities:
        by_label = {c.label: c.probability for c in prediction.top}
        row["probabilities"] = [by_label[label] for label in form.classes]
    row["top"] = row["top"][: form.top]
    return row
