"""The sample of validation images in a bundle, to compare later images with: features, no pixels."""

from __future__ import annotations

import io
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import _packed
from sightline.errors import ModelError
from sightline.inference.feature_log import round_features
from sightline.inference.nearest import normalize_rows
from sightline.inference.predictor import Outputs
from sightline.seeding import make_generator

SCHEMA = 1
MIN_IMAGES = 20  # validation images; with fewer, there is nothing to compare with
MAX_BYTES = 1 << 20  # limit on the size of the features
MAX_IMAGES = 1000  # limit on images whose features are kept
MAX_CONFIDENCES = 10_000
MAX_LABELED = 2000  # limit on images with several labels
MAX_BANK = 128
NEIGHBORS = 5
SCORES = ("distance", "uncertainty", "length")


@dataclass(frozen=True, slots=True, eq=False)
class ValidationSample:
    """A random sample of the validation images.

    Attributes:
        bank: float32 [B, F]: features of the images that define the scores: a third, at most 128.
        features: float32 [M, F]: features of the other images, with which new images are compared.
        uncertainties: float64 [M]: for each of them, one minus the largest probability or the quality of the mask.
        confidences: float32 [N]: the largest probability, or the quality of the mask, for each image and some more.
        correct: bool [N]: whether their predictions are correct; empty if images may have several labels, or masks.
        ious: float32 [N]: the IoU of each mask; empty for other models.
        probabilities: float32 [L, K]: those of each class, if images may have several labels; empty for other models.
        labels: bool [L, K]: whether these images have the label.
        groups: int64 [N]: the number of the group of each image with a confidence, from 0: images of one group, as
            `split.group` states them, depend on each other. Empty if images are independent.
    """

    bank: NDArray[np.float32]
    features: NDArray[np.float32]
    uncertainties: NDArray[np.float64]
    confidences: NDArray[np.float32]
    correct: NDArray[np.bool_]
    ious: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    probabilities: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    labels: NDArray[np.bool_] = field(default_factory=lambda: np.zeros((0, 0), bool))
    groups: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    @classmethod
    def from_outputs(
        cls, outputs: Outputs, correct: NDArray[np.bool_] | None, labels: NDArray[np.bool_] | None = None,
        groups: NDArray[np.int64] | None = None,
    ) -> ValidationSample | None:  # fmt: skip
        """Return a sample of images with these outputs; `correct` bool [N] as above, None for several labels.

        `labels` bool [N, K] are those of images that may have several, `groups` [N] the groups of images, if there are
        any. Returns None if there are too few images, or if the model does not return a row of probabilities for each.
        """
        if len(outputs.features) < MIN_IMAGES or outputs.probabilities.ndim != 2 or outputs.features.ndim != 2:
            return None
        rows = _choose_rows(len(outputs.features))
        bank, features = _choose_features(outputs.features, rows)
        probabilities = outputs.probabilities[rows]
        if not np.isfinite(features).all() or not np.isfinite(bank).all() or not np.isfinite(probabilities).all():
            return None
        return cls(
            bank, features, compute_uncertainties(probabilities[len(bank) :][: len(features)]), probabilities.max(1),
            np.zeros(0, bool) if correct is None else correct[rows],
            **_choose_labels(outputs.probabilities, labels, rows), groups=_choose_groups(groups, rows),
        )  # fmt: skip

    @classmethod
    def from_masks(
        cls, features: NDArray[np.float32], quality: NDArray[np.float64], ious: NDArray[np.float64],
        groups: NDArray[np.int64] | None,
    ) -> ValidationSample | None:  # fmt: skip
        """Return a sample of images with masks, given their features [N, F], the quality [N] and the IoU [N] of masks.

        `groups` [N] are the groups of the images, if any. The IoU of an image without a pixel of a class is NaN.
        Returns None if there are too few images.
        """
        if len(features) < MIN_IMAGES:
            return None
        rows = _choose_rows(len(features))
        bank, others = _choose_features(features, rows)
        if not np.isfinite(bank).all() or not np.isfinite(others).all() or not np.isfinite(quality).all():
            return None
        known = rows[np.isfinite(ious[rows])]
        return cls(
            bank, others, 1 - quality[rows][len(bank) :][: len(others)], quality[known].astype(np.float32),
            np.zeros(0, bool), ious[known].astype(np.float32), groups=_choose_groups(groups, known),
        )  # fmt: skip

    def get_groups(self, count: int) -> NDArray[np.int64] | None:
        """Return the groups of the first `count` images with a confidence, numbered from 0; None without groups."""
        return _choose_groups(self.groups, np.arange(count)) if len(self.groups) else None

    def compute_scores(self, features: NDArray[np.float32], uncertainties: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the `SCORES` float64 [n, 3] of images with these features [n, F] and uncertainties [n].

        They are the mean cosine distance to the nearest images of the bank, the uncertainty, and the length of the
        features.
        """
        count = min(NEIGHBORS, len(self.bank))
        distances = 1 - normalize_rows(features) @ normalize_rows(self.bank).T
        nearest = np.partition(distances, count - 1, axis=1)[:, :count].mean(1)
        return np.stack([nearest.astype(np.float64), uncertainties, np.linalg.norm(features, axis=1)], 1)

    def to_bytes(self) -> bytes:
        """Return the file of a bundle: an uncompressed ``.npz`` of the fields; equal samples give equal bytes."""
        file = io.BytesIO()
        names = [entry.name for entry in fields(self) if entry.name not in _OPTIONAL or len(getattr(self, entry.name))]
        arrays = {name: getattr(self, name) for name in names}
        arrays |= {name: arrays[name].astype(np.float16) for name in ("bank", "features")}
        arrays |= {name: arrays[name].astype(np.int32) for name in ("groups",) if name in arrays}
        np.savez(file, schema=np.int64(SCHEMA), **arrays)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes, classes: int) -> ValidationSample:
        """Restore the sample of a model with this number of classes from `to_bytes`.

        Raises `ModelError` for any other content.
        """
        try:
            arrays = _packed.load_arrays(io.BytesIO(content))
            schema = arrays.pop("schema", np.int64(-1))
            if schema.shape != () or schema != SCHEMA:
                raise ModelError(
                    f"its sample of validation images has schema {schema}, and this version reads schema {SCHEMA} only"
                )
            sample = cls(**{name: _convert(name, array) for name, array in arrays.items()})
        except (ValueError, TypeError, OSError) as error:
            raise ModelError(f"its sample of validation images cannot be read: {error}") from error
        fits = (
            min(*sample.bank.shape, *sample.features.shape) > 0
            and len(sample.features) == len(sample.uncertainties)
            and sample.bank.shape[1] == sample.features.shape[1]
            and len(sample.correct) in {0, len(sample.confidences)}
            and len(sample.ious) in {0, len(sample.confidences)}
            and len(sample.groups) in {0, len(sample.confidences)}
            and sample.labels.shape == sample.probabilities.shape
            and (not sample.labels.size or sample.labels.shape[1] == classes)
        )
        if not fits:
            raise ModelError("its sample of validation images has arrays of shapes that do not fit each other")
        return sample


def _choose_rows(count: int) -> NDArray[np.int64]:
    """Return the positions of up to `MAX_CONFIDENCES` of `count` images, at random."""
    return make_generator(0, "validation sample").permutation(count)[:MAX_CONFIDENCES]


def _choose_features(
    features: NDArray[np.float32], rows: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the rounded features of the bank, and those of the images after it in `rows`, as many as may be kept."""
    size = max(MIN_IMAGES, min(MAX_IMAGES, MAX_BYTES // (2 * features.shape[1])))
    rounded = round_features(features[rows[:size]])
    bank = min(MAX_BANK, len(rounded) // 3)
    return rounded[:bank], rounded[bank:]


def _choose_labels(
    probabilities: NDArray[np.float32], labels: NDArray[np.bool_] | None, rows: NDArray[np.int64]
) -> dict[str, NDArray[Any]]:
    """Return the probabilities and labels of the first of `rows`, as many as may be kept; none for single labels."""
    if labels is None:
        return {}
    size = max(MIN_IMAGES, min(MAX_LABELED, MAX_BYTES // (5 * labels.shape[1])))
    return {"probabilities": probabilities[rows[:size]], "labels": labels[rows[:size]]}


def _choose_groups(groups: NDArray[np.int64] | None, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the groups of the images at `rows`, numbered from 0 without a gap; empty without groups."""
    if groups is None:
        return np.zeros(0, np.int64)
    return np.unique(groups[rows], return_inverse=True)[1].astype(np.int64)


def compute_uncertainties(probabilities: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return one minus the largest of the probabilities [N, K], float64 [N], computed as the sum of the others.

    The difference itself would have few digits for a model that is nearly certain.
    """
    others = probabilities.astype(np.float64)
    others[np.arange(len(others)), others.argmax(1)] = 0
    sums: NDArray[np.float64] = others.sum(1)
    return sums


_OPTIONAL = {"ious", "probabilities", "labels", "groups"}
_TYPES: dict[str, tuple[type[np.generic], str, int]] = {
    "bank": (np.float32, "f", 2), "features": (np.float32, "f", 2), "uncertainties": (np.float64, "f", 1),
    "confidences": (np.float32, "f", 1), "correct": (np.bool_, "b", 1), "ious": (np.float32, "f", 1),
    "probabilities": (np.float32, "f", 2), "labels": (np.bool_, "b", 2), "groups": (np.int64, "i", 1),
}  # fmt: skip


def _convert(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """Return an array of a file in the type of its field; raises `ValueError`."""
    if name not in _TYPES:
        raise ValueError(f"it has an unknown array {name!r}")
    dtype, kind, dimensions = _TYPES[name]
    if array.dtype.kind != kind or array.ndim != dimensions or not np.isfinite(array).all():
        raise ValueError(f"its {name} are {array.dtype} {list(array.shape)}, or not finite")
    converted: NDArray[Any] = array.astype(dtype)
    return converted
