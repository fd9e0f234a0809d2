"""Hyperparameter sweeps: many runs from one search space, in a study shared by processes and machines."""

from __future__ import annotations

from sightline.sweeps.results import SweepResult, TrialResult
from sightline.sweeps.runner import sweep

__all__ = ["SweepResult", "TrialResult", "sweep"]
