"""The workflows that the command line and the Python API call, such as `train`, `resume` and `load`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sightline.workflow.classifier import Classifier, load, part_name
    from sightline.workflow.demo import demo_train, draw_new
    from sightline.workflow.resumption import resume
    from sightline.workflow.training import train

__all__ = ["Classifier", "demo_train", "draw_new", "load", "part_name", "resume", "train"]

_HOMES = {
    "Classifier": "sightline.workflow.classifier",
    "demo_train": "sightline.workflow.demo",
    "draw_new": "sightline.workflow.demo",
    "load": "sightline.workflow.classifier",
    "part_name": "sightline.workflow.classifier",
    "resume": "sightline.workflow.resumption",
    "train": "sightline.workflow.training",
}


def __getattr__(name: str) -> Any:  # lazy: predicting must not import what training needs
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'sightline.workflow' has no attribute {name!r}")
