"""Many runs from one search space, in a study that several processes and machines can work on."""

from __future__ import annotations

from sightline.sweep.results import Sweep, Trial, as_dict
from sightline.sweep.search import sweep

__all__ = ["Sweep", "Trial", "as_dict", "sweep"]
