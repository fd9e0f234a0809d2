"""The manifest of a bundle: classes, preprocessing, metrics, reference examples. A value, stored as JSON."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypedDict

from sightline import jsonio
from sightline.data.class_tree import check_paths
from sightline.errors import DataError, ModelError
from sightline.inference.decisions import check_thresholds
from sightline.inference.results import Thresholds
from sightline.intervals import Interval
from sightline.preprocessing import PreprocessingSpec

SCHEMA_VERSION = 2
MAX_CLASSES = 100_000
MAX_REFERENCE_EXAMPLES = 1_000  # `bundle.num_reference_examples` is at most 100; each added class adds one
ONE_CLASS_TASKS = ("single_label", "hierarchical", "ordinal")
"""The tasks for which the label of an image is one of the classes."""
IMAGE_TASKS, MASK_TASK = (*ONE_CLASS_TASKS, "multi_label"), "segmentation"  # one output per image, one per pixel
MAX_TILE = 16.0  # largest scale at which an image is cut into tiles
_SHA256 = re.compile(r"[0-9a-f]{64}")
REFERENCE_FILE = re.compile(r"reference/[0-9]{1,4}\.[a-z0-9]{1,8}")


def check_classes(classes: Sequence[Any], owner: str) -> None:
    """Raise `ModelError`, whose message starts with `owner`, unless the classes are 1 to `MAX_CLASSES` names."""
    if not 1 <= len(classes) <= MAX_CLASSES:
        raise ModelError(f"{owner} has {len(classes)} classes, expected 1 to {MAX_CLASSES}")
    if len(set(classes)) < len(classes) or not all(map(_is_name, classes)):
        raise ModelError(f"{owner}'s classes are not distinct names")


def _is_name(value: Any) -> bool:
    return type(value) is str and value != "" and jsonio.is_encodable(value)


class ImagesWithoutLeaked(TypedDict):
    """The main metrics on the images that are not in an earlier split."""

    accuracy: float | None
    accuracy_interval: Interval
    count: int


class LeakedInfo(TypedDict):
    """The evaluated images that are also in an earlier split."""

    count: int
    identical: int
    near_duplicates: int
    without_leaked: ImagesWithoutLeaked | None


class _MetricFields(TypedDict):
    value: float | None
    interval: tuple[float, float] | None


class _SplitMetrics(TypedDict, total=False):
    """The metrics of a split."""

    accuracy: float | None
    accuracy_interval: tuple[float, float] | None
    loss: float | None
    count: int
    untested_classes: list[str]
    leaked: LeakedInfo | None
    mean_average_precision: _MetricFields
    micro_f1: _MetricFields
    macro_f1: _MetricFields
    quadratic_weighted_kappa: _MetricFields
    mean_absolute_error: _MetricFields
    mean_iou: _MetricFields
    mean_dice: _MetricFields
    accuracy_level_1: _MetricFields
    hierarchical_f1: _MetricFields


class _ParityFields(TypedDict, total=False):
    count: int
    max_difference: float
    top1_agreement: float


class _DataFields(TypedDict, total=False):
    name: str
    counts: Mapping[str, int]
    positive: str


class _CheckedFields(TypedDict, total=False):
    """The types of the fields in JSON; numbers and classes are checked when the manifest is created."""

    model: str
    classes: list[Any]
    preprocess: Mapping[str, Any]
    task: str
    recipe: str
    precision: str
    parameters: int
    weights_sha256: str
    data: _DataFields
    metrics: Mapping[str, _SplitMetrics]
    thresholds: Mapping[str, Any] | None
    parity: _ParityFields | None
    lineage: list[Mapping[str, Any]]
    reference_examples: list[Any]
    graph_sha256: str
    version: str


class SchemaError(ModelError):
    """The manifest was written by a version of Sightline with another schema; the message says what to do."""


@dataclass(frozen=True, slots=True)
class ReferenceExample:
    """A reference example: an image with recorded outputs.

    `file` is its name in the bundle, `label` its true class; `pixels_sha256` (of the decoded pixels, uint8 HWC) and
    `probabilities` [K] were recorded when the bundle was created.
    """

    file: str
    label: str
    pixels_sha256: str
    probabilities: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything needed to use and to trust a model, besides its weights.

    `task` is the model's task, one of the values of ``model.task``. The graph already divides the logits by
    `temperature`. `metrics` are the metrics of each split, `thresholds` the thresholds for abstaining, `parity` the
    differences between the file and the trained model, `lineage` the steps that derived it from another model. `tile`
    is the scale at which masks are predicted in tiles, 0 for the whole image at once; see `tiling`.
    """

    model: str
    classes: tuple[str, ...]
    preprocess: PreprocessingSpec
    task: str = "single_label"
    recipe: str = ""
    precision: str = "float32"
    parameters: int = 0
    weights_sha256: str = ""
    temperature: float = 1.0
    data: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    thresholds: Mapping[str, Any] | None = None
    parity: Mapping[str, Any] | None = None
    lineage: tuple[Mapping[str, Any], ...] = ()
    reference_examples: tuple[ReferenceExample, ...] = ()
    graph_sha256: str = ""
    version: str = ""
    tile: float = 0.0

    def __post_init__(self) -> None:
        try:
            thresholds = Thresholds.from_dict(self.thresholds or {"count": 0})
        except ValueError as error:
            raise ModelError(f"the manifest's thresholds are invalid: {error}") from error
        check_classes(self.classes, "the manifest")
        self._check_tree()
        self._check_numbers()
        check_thresholds(thresholds, self.classes)
        if (count := len(self.reference_examples)) > MAX_REFERENCE_EXAMPLES:
            raise ModelError(
                f"the manifest has {count:,} reference examples, expected at most {MAX_REFERENCE_EXAMPLES:,}"
            )
        for example in self.reference_examples:
            is_valid = len(example.probabilities) == len(self.classes) and _SHA256.fullmatch(example.pixels_sha256)
            if not is_valid or not REFERENCE_FILE.fullmatch(example.file) or not self._knows(example.label):
                raise ModelError(f"the manifest's reference example {example.file!r} is invalid")

    def _check_tree(self) -> None:
        if self.task == "hierarchical":
            try:
                check_paths(self.classes)
            except DataError as error:
                raise ModelError(f"the manifest's classes are not a tree: {error}") from error

    def _check_numbers(self) -> None:
        if type(self.temperature) is not float or not 0 < self.temperature < math.inf:
            raise ModelError(f"the manifest's temperature is {self.temperature!r}, expected a number above 0")
        if type(self.tile) is not float or not 0 <= self.tile <= MAX_TILE:
            raise ModelError(f"the manifest's tile is {self.tile!r}, expected a number from 0 to {MAX_TILE:g}")

    def _knows(self, label: str) -> bool:
        return self.task not in ONE_CLASS_TASKS or label in self.classes

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values, with the schema version."""
        values = {"schema": SCHEMA_VERSION} | {f.name: getattr(self, f.name) for f in fields(self)}
        values["classes"] = list(self.classes)
        values["preprocess"] = self.preprocess.to_dict()
        values["reference_examples"] = [
            asdict(example) | {"probabilities": list(example.probabilities)} for example in self.reference_examples
        ]
        values["lineage"] = list(self.lineage)
        return values

    def to_json(self) -> str:
        """Return the manifest as JSON text; equal manifests give equal text."""
        return jsonio.dumps(self.to_dict(), sort_keys=True, indent=1)

    @classmethod
    def from_dict(cls, values: Any) -> Manifest:
        """Restore from `to_dict`; raises `ModelError` for another schema, or missing, unknown or invalid values."""
        if not isinstance(values, dict) or values.get("schema") != SCHEMA_VERSION:
            schema = values.get("schema") if isinstance(values, dict) else None
            raise SchemaError(
                f"its manifest has schema {schema!r}, but this version reads schema {SCHEMA_VERSION} only: "
                "train the model again, or use the version of Sightline that wrote it"
            )
        if not jsonio.is_encodable(jsonio.dumps(values)):
            raise ModelError("the manifest contains a lone surrogate, which is not valid UTF-8 text")
        jsonio.build(_CheckedFields, values, "the manifest")
        defaults = {"task": "single_label", "tile": 0.0}  # for manifests written before these fields existed
        field_values = defaults | {key: value for key, value in values.items() if key != "schema"}
        expected = {f.name for f in fields(cls)}
        if set(field_values) != expected:
            raise ModelError(
                f"the manifest lacks {sorted(expected - set(field_values))} or has "
                f"{sorted(set(field_values) - expected)}"
            )
        try:
            field_values["preprocess"] = PreprocessingSpec.from_dict(field_values["preprocess"])
            field_values["classes"] = tuple(field_values["classes"])
            field_values["lineage"] = tuple(field_values["lineage"])
            field_values["reference_examples"] = tuple(
                ReferenceExample(**(example | {"probabilities": tuple(float(p) for p in example["probabilities"])}))
                for example in field_values["reference_examples"]
            )
            return cls(**field_values)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise ModelError(f"the manifest is invalid: {error}") from error
