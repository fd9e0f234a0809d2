"""How a server identifies and describes its model: name, version, weights hash and description."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sightline.api.classifier import Classifier
from sightline.api.masks import check_tile
from sightline.errors import UsageError
from sightline.escaping import printable
from sightline.inference.runtimes.keras import KerasPredictor
from sightline.models.describe import weights_sha256

VERSION_DIGITS = 12
UNNAMED = "model"  # fallback; also the name of every model's files and folders, so it identifies none
Key = tuple[str, str | None]
"""The name of a model, and the version from its folder; None if the version is the hash of its weights."""
_GENERIC_NAMES = {UNNAMED, "bundle"}


@dataclass(frozen=True)
class ServedModel:
    """A classifier with the name that clients use; `number` is the version from its folder."""

    classifier: Classifier
    name: str
    number: str | None = None

    @classmethod
    def from_classifier(
        cls, classifier: Classifier, name: str | None = None, number: str | None = None, tile: float | None = None
    ) -> ServedModel:
        """Return the model with a `name`, by default the name of its run, file or folder: ``cats`` for ``runs/cats``.

        `tile` overrides the scale at which the model predicts masks in tiles; None keeps it. Raises `UsageError` for a
        name that cannot be part of a URL, and for tiles without masks.
        """
        if name is not None and (not name or "/" in name or not name.isprintable()):
            raise UsageError(f"The name of the model is {name!r}: expected printable characters, without '/'.")
        if tile is not None:
            if not classifier.task.targets.are_masks:
                raise UsageError("Tiles are for masks, and this model classifies whole images: leave --tile out.")
            classifier.tile = check_tile(tile)
        return cls(classifier, name or _choose_name(classifier.path), number)

    @property
    def key(self) -> Key:
        """Identifies the model: another one with the same key replaces it."""
        return self.name, self.number

    @cached_property
    def weights_sha256(self) -> str | None:
        """The hash of the weights, as in the manifest and `sightline models`; None for a model in memory."""
        manifest, predictor = self.classifier.manifest, self.classifier.predictor
        if manifest is not None:
            return manifest.weights_sha256 or None
        return weights_sha256(predictor.model) if isinstance(predictor, KerasPredictor) else None

    @cached_property
    def version(self) -> str:
        """The version from its folder, else the first digits of the hash of the weights, or ``1`` without a hash."""
        return self.number or (self.weights_sha256 or "1")[:VERSION_DIGITS]

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The fields that every response contains: name, version and hash of the weights."""
        return {"name": self.name, "version": self.version, "weights_sha256": self.weights_sha256}

    def describe(self) -> dict[str, Any]:
        """Return the response of ``GET /model``: the classes in order, the preprocessing, and the manifest's fields."""
        classifier, manifest = self.classifier, self.classifier.manifest
        manifest_fields = (
            "model",
            "recipe",
            "precision",
            "parameters",
            "weights_sha256",
            "temperature",
            "metrics",
            "version",
        )
        return {
            "classes": list(classifier.classes),
            "task": classifier.task.name,
            "preprocess": classifier.preprocess.to_dict(),
            **({"tile": classifier.tile} if classifier.task.targets.are_masks else {}),
            **({} if manifest is None else {name: getattr(manifest, name) for name in manifest_fields}),
        }


def _choose_name(path: Path | None) -> str:
    """Return the name of a run, bundle, zip, file or exported folder, or of its folder if that name is generic."""
    for candidate in [] if path is None else [path.absolute(), *path.absolute().parents]:
        name = candidate.stem if candidate.is_file() else candidate.name
        if name and name not in _GENERIC_NAMES:
            return printable(name)  # a file name may have invalid text or control characters
    return UNNAMED
