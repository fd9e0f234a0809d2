"""Sightline turns a folder of labeled images into a classifier that you can trust and ship."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sightline.api.classifier import Classifier
    from sightline.api.dataset import Dataset
    from sightline.api.description import describe
    from sightline.api.evaluation import Evaluation
    from sightline.api.loading import load
    from sightline.api.run import Run, train
    from sightline.callbacks import Callback
    from sightline.errors import (
        ConfigError,
        DataError,
        DivergedError,
        HostError,
        ImageError,
        InsufficientMemoryError,
        Interrupted,
        MissingExtraError,
        MissingImagesError,
        ModelError,
        OutputError,
        ProcessError,
        SightlineError,
        UsageError,
    )
    from sightline.inference.results import Prediction
    from sightline.sweeps import sweep

__all__ = [
    "Callback",
    "Classifier",
    "ConfigError",
    "DataError",
    "Dataset",
    "DivergedError",
    "Evaluation",
    "HostError",
    "ImageError",
    "InsufficientMemoryError",
    "Interrupted",
    "MissingExtraError",
    "MissingImagesError",
    "ModelError",
    "OutputError",
    "Prediction",
    "ProcessError",
    "Run",
    "SightlineError",
    "UsageError",
    "__version__",
    "describe",
    "load",
    "sweep",
    "train",
]

_HOMES = {
    "Callback": "sightline.callbacks",
    "Classifier": "sightline.api.classifier",
    "Dataset": "sightline.api.dataset",
    "Evaluation": "sightline.api.evaluation",
    "Prediction": "sightline.inference.results",
    "Run": "sightline.api.run",
    "describe": "sightline.api.description",
    "load": "sightline.api.loading",
    "sweep": "sightline.sweeps",
    "train": "sightline.api.run",
}


__version__: str


def __getattr__(name: str) -> Any:  # imported on first use, so that `import sightline` is fast
    if name == "__version__":
        from importlib import metadata

        return metadata.version("sightline")
    if name in __all__:
        import importlib

        value = getattr(importlib.import_module(_HOMES.get(name, "sightline.errors")), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'sightline' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
