"""`evaluate_model`: evaluate a model on labeled images, fit thresholds, and save the results in its run."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from sightline.api.classifier import Classifier
from sightline.api.evaluation import Evaluation
from sightline.api.label_issues import find_label_issues
from sightline.api.loaded_model import check_not_in_run
from sightline.api.ood_evaluation import DEFAULT_ALLOWED, AllowedImages, OutputReader, evaluate_ood
from sightline.api.report_writer import refresh_report, save_evaluation
from sightline.callbacks import Progress
from sightline.data.indexing import Sources, build_index
from sightline.data.label_patch import hold_patch, read_entries
from sightline.data.types import OUT_OF_FOLD, LabeledSubset, Split
from sightline.errors import DataError, UsageError
from sightline.evaluation import label_issues as issues
from sightline.evaluation.multi_label import MultiLabelReport
from sightline.evaluation.report import EvaluationReport
from sightline.evaluation.results import TaskReport
from sightline.inference.results import ThresholdRequest, Thresholds
from sightline.inference.tta import TTA, VIEWS, TTAPredictor
from sightline.report import plotting
from sightline.runs import run_images
from sightline.runs.directory import RunDirectory
from sightline.runs.labeled_images import LabeledImages
from sightline.tasks.protocol import EvaluationInputs


def evaluate_fully(  # noqa: PLR0913  # one keyword argument per option of the command
    classifier: Classifier,
    sources: Sources | None,
    *,
    split: Split | None,
    threshold_request: ThresholdRequest,
    ood_sources: Sources | None,
    label_issues: Path | None,
    tta: TTA | None,
    allowed: AllowedImages,
    cache: bool,
    progress: Progress,
) -> Evaluation:
    """Evaluate a model with `evaluate_model`, with test-time augmentation if `tta`, and find label issues.

    `label_issues` is the patch file to add them to; images with a ``keep`` line in it are not reported. Raises
    `UsageError` for thresholds or label issues with `tta`.
    """
    if tta is not None and tta not in VIEWS:
        names = " or ".join(map(repr, VIEWS))
        raise UsageError(f"There is no test-time augmentation {tta!r}: use {names}, or leave it out.")
    if tta and (label_issues is not None or threshold_request):
        raise UsageError(
            "--tta cannot be combined with thresholds or --find-label-issues, which are computed from single images: "
            "leave it out."
        )
    with ExitStack() as stack:
        if label_issues is not None:
            if "label-issues" not in classifier.task.sections:
                raise UsageError(
                    f"--find-label-issues checks the labels of whole images, not those of {classifier.task.name}: "
                    "leave it out."
                )
            issues.check_packages()  # before the evaluation, not after it
            label_issues = stack.enter_context(hold_patch(label_issues))
            read_entries(label_issues)  # raises early if it is not a patch
        report = evaluate_model(
            classifier.with_tta(tta) if tta else classifier, sources, split=split, threshold_request=threshold_request,
            ood_sources=ood_sources, allowed=allowed, cache=cache, progress=progress,
        )  # fmt: skip
        check = None
        if label_issues is not None:
            check = find_label_issues(
                classifier, label_issues, allow_missing=allowed.missing, cache=cache, progress=progress
            )
    return Evaluation(report, check, VIEWS[tta] if tta else 1)


def evaluate_model(
    classifier: Classifier,
    sources: Sources | LabeledImages | None,
    *,
    split: Split | None,
    threshold_request: ThresholdRequest,
    ood_sources: Sources | None = None,
    allowed: AllowedImages = DEFAULT_ALLOWED,
    cache: bool = True,
    progress: Progress,
) -> TaskReport:
    """Evaluate a classifier, and how far its predictions can be trusted, as `Classifier.evaluate` does.

    The thresholds of `threshold_request` are fitted on the validation split: that of the run or, for a bundle, zip or
    file, which has no images, that of `sources`. They are saved in the run, or in the bundle, zip or file, and
    evaluated on the other images. `ood_sources` are out-of-distribution images, of which at most a thousand are used.
    If a complete split of the run's own images is evaluated, metrics and figures are saved in the run.

    Raises `DataError` if thresholds are requested without validation images, `MissingImagesError` if some of the run's
    own images are missing and `allowed` does not allow it, `ModelError` if the run is being trained or was trained
    further since the model was loaded, and `UsageError` if thresholds cannot be saved (see
    `LoadedModel.save_thresholds`).
    """
    fits_thresholds = bool(threshold_request)
    thresholds = None if threshold_request.reset else classifier.thresholds
    threshold_request = _merge_configured(classifier.run, threshold_request)
    positive = threshold_request.positive or _find_positive(classifier, thresholds)
    threshold_request = replace(threshold_request, positive=positive)
    classifier.task.check_request(threshold_request, classifier.classes)
    if ood_sources is not None and not classifier.task.supports_ood:
        raise UsageError(
            f"--ood measures how a classifier detects unusual images, which a model of {classifier.task.name} does not "
            "do: leave it out."
        )
    if fits_thresholds and classifier.run is None and classifier.path is not None:
        check_not_in_run(classifier.path)
    ood_index = None if ood_sources is None else build_index(ood_sources, progress, lenient=True, unlabeled=True)
    labeled_images = sources if isinstance(sources, LabeledImages) else classifier.labeled_images(sources, progress)
    if classifier.run is not None and labeled_images.is_own:  # its figures are redrawn
        plotting.check_packages()
        classifier.check_run_unchanged()  # fail before the evaluation, not only after it
    # A run has validation images; for a bundle they are the validation split of the given sources.
    own_images = (
        labeled_images
        if labeled_images.is_own or classifier.run is None
        else classifier.labeled_images(progress=progress)
    )
    output_reader = OutputReader(classifier, own_images, allowed, progress, cache=cache)
    labeled, outputs = output_reader.load(labeled_images, split)
    split_name = labeled.split or "other"
    held_out = OUT_OF_FOLD if output_reader.is_folded else "validation"
    is_validation = split_name == "validation" or (classifier.run is None and split == "validation")
    validation_outputs = (
        outputs
        if is_validation
        else output_reader.collect_outputs("validation", strict=fits_thresholds or labeled_images.is_own)
    )
    if fits_thresholds:
        if validation_outputs is None:
            raise DataError(_no_validation_message(classifier))
        thresholds = classifier.task.fit_thresholds(
            classifier.classes, validation_outputs, threshold_request, thresholds
        )
    name = held_out if split_name == "validation" else split_name
    result: TaskReport = classifier.task.evaluate(
        EvaluationInputs(
            classifier.classes, outputs, labeled, name, validation_outputs, thresholds, threshold_request, held_out
        )
    )
    if ood_index is not None and isinstance(result, EvaluationReport | MultiLabelReport):
        ood_result = evaluate_ood(output_reader, outputs, validation_outputs, result.thresholds, ood_index)
        result = replace(result, ood=ood_result)
    _save_results(classifier, result, labeled, save_thresholds=fits_thresholds)
    return result


def _merge_configured(run: RunDirectory | None, request: ThresholdRequest) -> ThresholdRequest:
    """Return the request without `reset`; a reset without targets gets the targets of the run's settings."""
    targets = replace(request, reset=False)
    if run is None or targets or not request.reset:
        return targets
    return ThresholdRequest.from_config(run.config.evaluation)


def _find_positive(classifier: Classifier, thresholds: Thresholds | None) -> str:
    """Return the positive class of the saved threshold, else of the run or the bundle; "" if there is none."""
    if thresholds is not None and thresholds.positive is not None:
        return thresholds.positive
    if classifier.run is not None:
        return classifier.run.config.evaluation.positive_class
    return "" if classifier.manifest is None else str(classifier.manifest.data.get("positive", ""))


def _no_validation_message(classifier: Classifier) -> str:
    if classifier.run is None:
        return (
            "Thresholds are fitted on validation images, and a model without its run has none: give images with a "
            "validation split (folders validation/ and test/), none of which the model was trained on."
        )
    if run_images.is_in_memory(classifier.run):
        return (
            "Thresholds are fitted on validation images, and this run was trained on images in memory, which it does "
            "not store: give the same data again, as in clf.evaluate(data, target_precision=0.99)."
        )
    return (
        "Thresholds are fitted on validation images, and none are available for this run: restore its images, or train "
        "with split.validation above 0."
    )


def _save_results(classifier: Classifier, result: TaskReport, labeled: LabeledSubset, *, save_thresholds: bool) -> None:
    if save_thresholds and result.thresholds != classifier.thresholds:
        classifier.save_thresholds(result.thresholds)
    run = classifier.run
    if run is None:
        return
    if labeled.split is not None and labeled.missing is None and not isinstance(classifier.predictor, TTAPredictor):
        classifier.check_run_unchanged()
        save_evaluation(run, labeled.split, result, labeled.subset)
    elif save_thresholds:
        refresh_report(run)
