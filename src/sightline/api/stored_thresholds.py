"""Abstention thresholds are saved with the model that they were fitted for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sightline.errors import UsageError
from sightline.inference import bundle, exported_folder
from sightline.inference.manifest import Manifest
from sightline.inference.results import Thresholds
from sightline.runs.directory import RunDirectory


def save_in_run(run: RunDirectory, thresholds: Thresholds) -> None:
    """Save thresholds in a run, and in its bundle if it has one."""
    run.write_thresholds(thresholds)
    if run.bundle is not None:
        run.update_manifest(thresholds=thresholds.to_dict())


def save_in_bundle(path: Path, manifest: Manifest, thresholds: Thresholds) -> Manifest:
    """Save thresholds in a bundle, its zip or its file, or in an exported folder; return its new manifest."""
    check_not_in_run(path)
    is_bundle = exported_folder.find(path) is None
    update = bundle.update_manifest_file if is_bundle else exported_folder.update_manifest_file
    update(path, thresholds=thresholds.to_dict())
    return replace(manifest, thresholds=thresholds.to_dict())


def check_not_in_run(path: Path) -> None:
    """Raise `UsageError` for the bundle inside a run, whose thresholds are those of the run."""
    folder = path.resolve() if path.is_dir() else path.resolve().parent
    if folder.name == "bundle" and (folder.parent / "run.json").is_file():
        raise UsageError(
            f"{path} belongs to the run {folder.parent} and uses its thresholds: evaluate the run, or a "
            "copy of the bundle."
        )
