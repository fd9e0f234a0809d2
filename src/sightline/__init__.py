"""Sightline turns a folder of labeled images into a classifier that you can trust and ship."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sightline.records import Evaluation, Prediction, TrainResult
    from sightline.workflow import Classifier, load, train

__all__ = [
    "Classifier",
    "Evaluation",
    "Prediction",
    "TrainResult",
    "__version__",
    "evaluate",
    "load",
    "predict",
    "train",
]

_HOMES = {
    "Classifier": "sightline.workflow",
    "Evaluation": "sightline.records",
    "Prediction": "sightline.records",
    "TrainResult": "sightline.records",
    "load": "sightline.workflow",
    "train": "sightline.workflow",
}


__version__: str


def predict(model: Any, pictures: Any, *, top: int = 5) -> list[Prediction]:
    """Load the run at path `model` and classify `pictures`; see `Classifier.predict`."""
    from sightline.workflow import load

    return load(model).predict(pictures, top=top)


def evaluate(model: Any, sources: Any = None, **options: Any) -> Evaluation:
    """Load the run at path `model` and evaluate it; see `Classifier.evaluate`."""
    from sightline.workflow import load

    return load(model).evaluate(sources, **options)


def __getattr__(name: str) -> Any:  # imported on first use, so that `import sightline` is fast
    if name == "__version__":
        from importlib import metadata

        return metadata.version("sightline")
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'sightline' has no attribute {name!r}")
