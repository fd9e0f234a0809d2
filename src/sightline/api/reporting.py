"""Write the report of a run again."""

from __future__ import annotations

from pathlib import Path

from sightline.api.evaluation import evaluate_model
from sightline.api.loading import load
from sightline.callbacks import Progress, no_progress
from sightline.errors import ModelError
from sightline.inference.runtimes.keras import KerasPredictor
from sightline.runs import run_report
from sightline.runs.directory import RunDirectory
from sightline.runs.failures import explain_incomplete


def rebuild_report(path: Path, *, progress: Progress = no_progress) -> Path:
    """Evaluate a complete run on its own images again, write its report and return the path.

    Raises `ModelError` if `path` is not a complete run, `DataError` if its images are missing.
    """
    run = RunDirectory.open(path)
    if run.info.get("status") != "complete":
        raise ModelError(f"The run {path} has nothing to report yet: {explain_incomplete(run)}.")
    classifier = load(path)
    images = classifier.labeled_images(progress=progress)
    evaluation_report = evaluate_model(classifier, images, progress=progress)
    labeled = images.load("validation" if evaluation_report.split == "validation" else "test")
    keras_predictor = load(path, engine="keras").predictor
    assert isinstance(keras_predictor, KerasPredictor)
    return run_report.write_report(run, run.result, evaluation_report, labeled, keras_predictor)
