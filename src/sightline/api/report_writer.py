"""Write the report and the model card of a run from its files, and the figures of one that was just trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sightline.errors import ModelError
from sightline.inference import bundle
from sightline.report import html_report, model_card, sentences
from sightline.runs.directory import RunDirectory
from sightline.runs.failures import explain_incomplete, require_bundle
from sightline.runs.predictions import list_image_values
from sightline.runs.report_images import write_examples
from sightline.runs.run_report import find_reported_split, read_report

if TYPE_CHECKING:  # annotations only: a report must not import training code
    from sightline.data.types import Split, Subset
    from sightline.evaluation.results import TaskReport
    from sightline.runs.finalize import FinalModel


def write_first_report(run: RunDirectory, final: FinalModel) -> None:
    """Draw the figures of a run whose final model has just been evaluated, and write its report."""
    from sightline.evaluation.report import EvaluationReport
    from sightline.report import evaluation_plots, run_plots

    if history := run.read_history():
        config = run.config
        title, accuracy_name = html_report.describe_run(config), sentences.name_accuracy(config.model.task)
        run.write_figure("curves", run_plots.plot_curves(history, title, accuracy_name).files)
    if isinstance(final.last_report, EvaluationReport):
        figures = evaluation_plots.plot_main(final.last_report)
        run.write_figures({name: figure.files for name, figure in figures.items()})
    _write_page(run)


def load_packages() -> None:
    """Import and prepare what `write_first_report` needs, which takes 0.4 s."""
    from sightline.report import evaluation_plots, plotting, run_plots, templates  # noqa: F401

    plotting.load_packages()
    templates.make_environment()


def rebuild_report(path: Path) -> Path:
    """Write the report of a complete run again, from its files alone, and return the path of the page.

    Raises `ModelError` if `path` is not a complete run.
    """
    run = RunDirectory.open(path)
    if run.info.get("status") != "complete":
        raise ModelError(f"The run {path} has nothing to report yet: {explain_incomplete(run)}.")
    return _write_page(run)


def save_evaluation(run: RunDirectory, split: Split, report: TaskReport, samples: Subset) -> None:
    """Save the evaluation of a split of a run, whose images are `samples`, with its figures, and refresh the report."""
    from sightline.evaluation.report import EvaluationReport
    from sightline.report import evaluation_plots

    run.write_evaluation(split, report.evaluation, report.to_dict(), list_image_values(report))
    if isinstance(report, EvaluationReport):
        run.write_figures({name: figure.files for name, figure in evaluation_plots.plot_all(report, samples).items()})
    if split == find_reported_split(run.info.get("result")):
        write_examples(run, report, samples)
    refresh_report(run)


def refresh_report(run: RunDirectory) -> None:
    """Write the report of a complete run again, after an evaluation has changed its files."""
    if run.info.get("status") == "complete":
        _write_page(run)


def _write_page(run: RunDirectory) -> Path:
    return run.write_report(html_report.render_html(read_report(run)))


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
    text = model_card.render_card(loaded_bundle.manifest, run.info, tuple(figures))
    run.write_bundle(replace(loaded_bundle, files={**loaded_bundle.files, **figures, bundle.CARD_FILE: text.encode()}))
    return text, folder / bundle.CARD_FILE
