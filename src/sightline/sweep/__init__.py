"""Hyperparameter sweeps: many runs from one search space, in a study shared by processes and machines."""

from __future__ import annotations

from sightline.sweep.results import Sweep, Trial, as_dict
from sightline.sweep.search import sweep

__all__ = ["Sweep", "Trial", "as_dict", "sweep"]
