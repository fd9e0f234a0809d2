"""`write_model_card`: write a model card into a run's bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sightline.errors import ModelError
from sightline.inference import bundle
from sightline.report import model_card as report
from sightline.runs.directory import RunDirectory
from sightline.runs.failures import require_bundle


def write_model_card(path: str | Path) -> tuple[str, Path]:
    """Write the model card of a run, with its confusion matrix, into its bundle; return its text and path.

    Raises `ModelError` if `path` is not a run or the run has no bundle, `OutputError` if other files are in its folder.
    """
    run = RunDirectory.open(Path(path))
    folder = require_bundle(run, "to write the model card to")
    loaded_bundle, _ = bundle.load(folder)
    bundle.refuse_foreign_files(folder, bundle.to_files(loaded_bundle))
    confusion_figure = run.read_figure("confusion.png")
    figures = {} if confusion_figure is None else {"figures/confusion.png": confusion_figure}
    try:
        text = report.render_card(loaded_bundle.manifest, run.info, tuple(figures))
    except KeyError as error:
        raise ModelError(
            f"{folder / bundle.MANIFEST_FILE} lacks {error}, which the model card needs: train again, or export "
            "with `sightline export`."
        ) from error
    run.write_bundle(replace(loaded_bundle, files={**loaded_bundle.files, **figures, bundle.CARD_FILE: text.encode()}))
    return text, folder / bundle.CARD_FILE
