"""The manifest of a bundle: classes, preprocessing, metrics, reference examples. A value, stored as JSON."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypedDict

from sightline import jsonio
from sightline.errors import ModelError
from sightline.prediction.decide import check as check_thresholds
from sightline.preprocess import Preprocess
from sightline.records import Thresholds

SCHEMA = 1
MOST_CLASSES = 100_000
_HASH = re.compile(r"[0-9a-f]{64}")
_KINDS: dict[str, Any] = {
    "model": str, "recipe": str, "precision": str, "parameters": int, "weights_sha256": str, "data": Mapping,
    "figures": Mapping, "thresholds": Mapping | None, "parity": Mapping | None, "graph_sha256": str, "version": str,
}  # fmt: skip
GOLDEN_FILE = re.compile(r"golden/[0-9]{1,4}\.[a-z0-9]{1,8}")


def _is_name(value: Any) -> bool:
    return type(value) is str and value != "" and jsonio.is_text(value)


class _Split(TypedDict, total=False):
    """The metrics of a split."""

    accuracy: float | None
    accuracy_interval: tuple[float, float] | None
    loss: float | None
    count: int
    untested_classes: list[str]
    leaked: Mapping[str, Any] | None


class _Parity(TypedDict, total=False):
    count: int
    greatest_difference: float
    top1_agreement: float


class _Data(TypedDict, total=False):
    name: str
    counts: Mapping[str, int]
    positive: str


class _Metrics(TypedDict, total=False):
    """The types of the fields that are displayed."""

    figures: Mapping[str, _Split]
    parity: _Parity | None
    data: _Data


@dataclass(frozen=True, slots=True)
class Golden:
    """A reference example: an image with recorded outputs.

    `file` is its name in the bundle, `label` its true class; `pixels_sha256` (of its decoded pixels, uint8 HWC) and
    `probabilities` [K] were recorded when the bundle was made.
    """

    file: str
    label: str
    pixels_sha256: str
    probabilities: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything needed to use and to trust a model, besides its weights.

    `temperature` divides the logits, already inside the graph. `figures` holds the metrics of each split, `thresholds`
    those for abstaining, `parity` the differences between the file and the trained model, `lineage` the steps that
    derived it from another model.
    """

    model: str
    classes: tuple[str, ...]
    preprocess: Preprocess
    recipe: str = ""
    precision: str = "float32"
    parameters: int = 0
    weights_sha256: str = ""
    temperature: float = 1.0
    data: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)
    thresholds: Mapping[str, Any] | None = None
    parity: Mapping[str, Any] | None = None
    lineage: tuple[Mapping[str, Any], ...] = ()
    golden: tuple[Golden, ...] = ()
    graph_sha256: str = ""
    version: str = ""

    def __post_init__(self) -> None:
        for name, kind in _KINDS.items():
            if not isinstance(getattr(self, name), kind) or isinstance(getattr(self, name), bool):
                raise ModelError(f"the manifest's {name} is {getattr(self, name)!r}, which is of the wrong type")
        if not all(isinstance(step, Mapping) for step in self.lineage):
            raise ModelError("the manifest's lineage is not a list of steps")
        try:
            thresholds = Thresholds.from_dict(self.thresholds or {"count": 0})
        except ValueError as error:
            raise ModelError(f"the manifest's thresholds are invalid: {error}") from error
        if not 1 <= len(self.classes) <= MOST_CLASSES:
            raise ModelError(f"the manifest has {len(self.classes)} classes, expected 1 to {MOST_CLASSES}")
        if len(set(self.classes)) < len(self.classes) or not all(map(_is_name, self.classes)):
            raise ModelError("the manifest's classes are not distinct names")
        if type(self.temperature) is not float or not 0 < self.temperature < math.inf:
            raise ModelError(f"the manifest's temperature is {self.temperature!r}, expected a number above 0")
        check_thresholds(thresholds, self.classes)
        for golden in self.golden:
            whole = len(golden.probabilities) == len(self.classes) and _HASH.fullmatch(golden.pixels_sha256)
            if not whole or not GOLDEN_FILE.fullmatch(golden.file) or golden.label not in self.classes:
                raise ModelError(f"the manifest's reference example {golden.file!r} is invalid")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values, with the schema version."""
        values = {"schema": SCHEMA} | {f.name: getattr(self, f.name) for f in fields(self)}
        values["classes"] = list(self.classes)
        values["preprocess"] = self.preprocess.to_dict()
        values["golden"] = [asdict(g) | {"probabilities": list(g.probabilities)} for g in self.golden]
        values["lineage"] = list(self.lineage)
        return values

    def to_json(self) -> str:
        """Return the manifest as JSON text, equal for equal values."""
        return jsonio.dumps(self.to_dict(), sort_keys=True, indent=1)

    @classmethod
    def from_dict(cls, values: Any) -> Manifest:
        """Restore from `to_dict`; raises `ModelError` for another schema and for missing, unknown or invalid values."""
        if not isinstance(values, dict) or values.get("schema") != SCHEMA:
            schema = values.get("schema") if isinstance(values, dict) else None
            raise ModelError(f"the manifest has the schema {schema!r}; this version of Sightline reads {SCHEMA} only")
        if not jsonio.is_text(jsonio.dumps(values)):
            raise ModelError("the manifest contains a lone surrogate, which is not valid UTF-8 text")
        jsonio.build(_Metrics, values, "the manifest")
        rest = {key: value for key, value in values.items() if key != "schema"}
        expected = {f.name for f in fields(cls)}
        if set(rest) != expected:
            raise ModelError(f"the manifest lacks {sorted(expected - set(rest))} or has {sorted(set(rest) - expected)}")
        try:
            rest["preprocess"] = Preprocess.from_dict(rest["preprocess"])
            rest["classes"] = tuple(rest["classes"])
            rest["lineage"] = tuple(rest["lineage"])
            rest["golden"] = tuple(
                Golden(**(g | {"probabilities": tuple(float(p) for p in g["probabilities"])})) for g in rest["golden"]
            )
            return cls(**rest)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise ModelError(f"the manifest is invalid: {error}") from error
