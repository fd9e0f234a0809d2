"""Save abstention thresholds with the model that they were fitted for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sightline.errors import UsageError
from sightline.inference import bundle, exported_folder
from sightline.inference.manifest import Manifest
from sightline.inference.results import ThresholdRequest, Thresholds
from sightline.runs.directory import RunDirectory


def merge_configured(run: RunDirectory | None, request: ThresholdRequest) -> ThresholdRequest:
    """Return the request without `reset`; a reset without targets gets the targets of the run's settings."""
    targets = replace(request, reset=False)
    if run is None or targets or not request.reset:
        return targets
    return ThresholdRequest.from_config(run.config.evaluation)


def save_in_run(run: RunDirectory, thresholds: Thresholds | None) -> None:
    """Save thresholds in a run, and in its bundle if it has one."""
    run.write_thresholds(thresholds)
    if run.bundle is not None:
        run.update_manifest(thresholds=thresholds and thresholds.to_dict())


def save_in_bundle(path: Path, manifest: Manifest, thresholds: Thresholds | None) -> Manifest:
    """Save thresholds in a bundle, its zip or its file, or in an exported folder; return its new manifest."""
    check_not_in_run(path)
    is_bundle = exported_folder.find(path) is None
    update = bundle.update_manifest_file if is_bundle else exported_folder.update_manifest_file
    values = None if thresholds is None else thresholds.to_dict()
    update(path, thresholds=values)
    return replace(manifest, thresholds=values)


def check_not_in_run(path: Path) -> None:
    """Raise `UsageError` for the bundle inside a run, which must have the thresholds of its run."""
    folder = path.resolve() if path.is_dir() else path.resolve().parent
    if folder.name == "bundle" and (folder.parent / "run.json").is_file():
        raise UsageError(
            f"{path} belongs to the run {folder.parent} and uses its thresholds: evaluate the run, or a "
            "copy of the bundle."
        )
