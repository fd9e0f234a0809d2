"""Sightline turns a folder of labeled images into a classifier that you can trust and ship."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sightline.api import Classifier, load, train
    from sightline.evaluation.results import EvaluationResult
    from sightline.inference.results import Prediction
    from sightline.training.result import TrainResult

__all__ = [
    "Classifier",
    "EvaluationResult",
    "Prediction",
    "TrainResult",
    "__version__",
    "evaluate",
    "load",
    "predict",
    "train",
]

_HOMES = {
    "Classifier": "sightline.api",
    "EvaluationResult": "sightline.evaluation.results",
    "Prediction": "sightline.inference.results",
    "TrainResult": "sightline.training.result",
    "load": "sightline.api",
    "train": "sightline.api",
}


__version__: str


def predict(model: Any, images: Any, *, top: int = 5) -> list[Prediction]:
    """Load the run at path `model` and classify `images`; see `Classifier.predict`."""
    from sightline.api import load

    return load(model).predict(images, top=top)


def evaluate(model: Any, sources: Any = None, **options: Any) -> EvaluationResult:
    """Load the run at path `model` and evaluate it; see `Classifier.evaluate`."""
    from sightline.api import load

    return load(model).evaluate(sources, **options)


def __getattr__(name: str) -> Any:  # imported on first use, so that `import sightline` is fast
    if name == "__version__":
        from importlib import metadata

        return metadata.version("sightline")
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'sightline' has no attribute {name!r}")
