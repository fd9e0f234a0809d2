"""`card`: write a model card into a run's bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sightline.errors import ModelError
from sightline.prediction import bundle
from sightline.report import card as report
from sightline.run import Run
from sightline.workflow.ending import no_bundle


def card(path: str | Path) -> tuple[str, Path]:
    """Write the model card of a run, with its confusion matrix, into its bundle; return its text and path.

    Raises `ModelError` if `path` is not a run or the run has no bundle.
    """
    run = Run.open(Path(path))
    if run.bundle is None:
        raise ModelError(f"The run {path} has no bundle to write the model card to: {no_bundle(run)}.")
    found, _ = bundle.load(run.bundle)
    drawing = run.read_figure("confusion")
    figures = {} if drawing is None else {"figures/confusion.png": drawing.png}
    try:
        text = report.card(found.manifest, run.info, tuple(figures))
    except KeyError as error:
        raise ModelError(
            f"{run.bundle / bundle.MANIFEST} lacks {error}, which the model card needs: train again, or export with "
            "`sightline export`."
        ) from error
    run.write_bundle(replace(found, files={**found.files, **figures, bundle.CARD: text.encode()}))
    return text, run.bundle / bundle.CARD
