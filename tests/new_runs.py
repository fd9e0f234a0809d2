"""Run directories that no training has written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sightline.runs.directory import RunDirectory


def create_run(path: Path, **options: Any) -> RunDirectory:
    """Create a run that no process holds, and never has."""
    with RunDirectory.create(path, **options) as run:
        pass
    (run.path / "lock").unlink()
    return run
