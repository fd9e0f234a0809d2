"""Sightline turns a folder of labeled images into a classifier that you can trust and ship."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sightline.api.classifier import Classifier
    from sightline.api.dataset import Dataset
    from sightline.api.description import describe
    from sightline.api.evaluation import Evaluation
    from sightline.api.hub import pull, push
    from sightline.api.learning_curve import learning_curve
    from sightline.api.loading import load
    from sightline.api.run import Run, train
    from sightline.callbacks import Callback
    from sightline.data.sources.named import register_source
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
        PluginError,
        ProcessError,
        SightlineError,
        UsageError,
    )
    from sightline.evaluation.scoring import register_metric
    from sightline.inference.exporters import register_exporter
    from sightline.inference.results import Prediction
    from sightline.models.layers import register_layer
    from sightline.models.registry import register_model
    from sightline.sweeps import sweep
    from sightline.tasks.protocol import register_task
    from sightline.training.augment.augmentation import register_augmentation

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
    "PluginError",
    "Prediction",
    "ProcessError",
    "Run",
    "SightlineError",
    "UsageError",
    "__version__",
    "describe",
    "learning_curve",
    "load",
    "pull",
    "push",
    "register_augmentation",
    "register_exporter",
    "register_layer",
    "register_metric",
    "register_model",
    "register_source",
    "register_task",
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
    "learning_curve": "sightline.api.learning_curve",
    "load": "sightline.api.loading",
    "pull": "sightline.api.hub",
    "push": "sightline.api.hub",
    "register_augmentation": "sightline.training.augment.augmentation",
    "register_exporter": "sightline.inference.exporters",
    "register_layer": "sightline.models.layers",
    "register_metric": "sightline.evaluation.scoring",
    "register_model": "sightline.models.registry",
    "register_source": "sightline.data.sources.named",
    "register_task": "sightline.tasks.protocol",
    "sweep": "sightline.sweeps",
    "train": "sightline.api.run",
}


__version__: str


def __getattr__(name: str) -> Any:  # lazy imports keep `import sightline` fast
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
