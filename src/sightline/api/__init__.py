"""The workflows that the command line and the Python API call, such as `train`, `resume` and `load`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sightline.api.classifier import Classifier
    from sightline.api.loading import load
    from sightline.api.resuming import resume
    from sightline.api.training import train

__all__ = ["Classifier", "load", "resume", "train"]

_HOMES = {
    "Classifier": "sightline.api.classifier",
    "load": "sightline.api.loading",
    "resume": "sightline.api.resuming",
    "train": "sightline.api.training",
}


def __getattr__(name: str) -> Any:  # lazy: predicting must not import what training needs
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'sightline.api' has no attribute {name!r}")
