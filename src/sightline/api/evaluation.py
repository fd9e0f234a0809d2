"""`evaluate_model`: metrics, calibration, abstention, OOD detection, errors and slices; and `find_label_issues`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sightline import _io, jsonio
from sightline.api.classifier import Classifier
from sightline.callbacks import Progress, no_progress
from sightline.data.dataset import decode_images
from sightline.data.indexing import Sources
from sightline.data.indexing import build_index as make_index
from sightline.data.types import SPLITS, ImageRecord, LabeledSubset, Split, Subset
from sightline.errors import DataError, MissingImagesError
from sightline.evaluation import label_issues, ood, report
from sightline.evaluation.label_issues import LabelIssue
from sightline.evaluation.ood import OODResult
from sightline.evaluation.report import NO_THRESHOLDS, EvaluationReport, ModelOutputs, ThresholdRequest, collect_outputs
from sightline.inference.tta import FlipTTA
from sightline.report import evaluation_plots as drawings
from sightline.report import plotting
from sightline.runs.labeled_images import LabeledImages
from sightline.seeding import make_generator


@dataclass(frozen=True, slots=True)
class AllowedImages:
    """What an evaluation accepts beyond the default: `training` images, or a split with `missing` images."""

    training: bool = False
    missing: bool = False


DEFAULT_ALLOWED = AllowedImages()
MAX_OOD_IMAGES = 1000  # maximum OOD images; they estimate an AUROC to about 0.01


def evaluate_model(
    classifier: Classifier,
    sources: Sources | LabeledImages | None = None,
    *,
    split: Split | None = None,
    threshold_request: ThresholdRequest = NO_THRESHOLDS,
    ood_sources: Sources | None = None,
    allowed: AllowedImages = DEFAULT_ALLOWED,
    cache: bool = True,
    progress: Progress = no_progress,
) -> EvaluationReport:
    """Evaluate a classifier as `Classifier.evaluate` does, and how far its predictions can be trusted.

    `threshold_request` thresholds are fitted on the validation split: the run's or, for a bundle, zip or file, which
    has no images, that of `sources`. They are saved in the run, or in the bundle, zip or file, and evaluated on the
    other images. `ood_sources` are out-of-distribution images, of which at most a thousand are used. If a complete
    split of the run's own images is evaluated, metrics and figures are saved in the run.

    Raises `DataError` if thresholds are requested without validation images, `MissingImagesError` if some of the run's
    own images are missing and `allowed` does not allow it, and `UsageError` if thresholds cannot be saved (see
    `Classifier.keep`).
    """
    threshold_request = replace(
        threshold_request, positive=threshold_request.positive or _configured_positive(classifier)
    )
    report.check_request(threshold_request, classifier.classes)
    if threshold_request:
        classifier.check_can_save_thresholds()
    if ood_sources is not None and classifier.run is not None:  # its training images may be known
        ood.check_packages()
    labeled_images = sources if isinstance(sources, LabeledImages) else classifier.labeled_images(sources, progress)
    if classifier.run is not None and labeled_images.is_own:  # its figures are redrawn
        plotting.check_packages()
    # A run has validation images; for a bundle they are the validation split of the given sources.
    own_images = (
        labeled_images
        if labeled_images.is_own or classifier.run is None
        else classifier.labeled_images(progress=progress)
    )
    output_reader = _OutputReader(classifier, own_images, allowed, progress, cache=cache)
    labeled = labeled_images.load(split, include_training=allowed.training, allow_missing=allowed.missing, cache=cache)
    outputs = collect_outputs(classifier.predictor, labeled.subset, progress)
    split_name = labeled.split or "other"
    is_validation = split_name == "validation" or (classifier.run is None and split == "validation")
    validation_outputs = (
        outputs
        if is_validation
        else output_reader.collect_outputs("validation", strict=bool(threshold_request) or labeled_images.is_own)
    )
    thresholds, threshold = classifier.thresholds, None
    if threshold_request:
        if validation_outputs is None:
            raise DataError(_no_validation_message(classifier))
        thresholds, threshold = report.fit_thresholds(
            validation_outputs, threshold_request, thresholds, classifier.classes
        )
    result = report.build_report(
        classifier.classes, outputs, labeled, split_name, validation_outputs, thresholds, threshold_request
    )
    result = replace(result, threshold=threshold)
    if ood_sources is not None:
        result = replace(result, ood=_evaluate_ood(output_reader, outputs, result, ood_sources))
    _save_results(classifier, result, labeled, save_thresholds=bool(threshold_request))
    return result


def _configured_positive(classifier: Classifier) -> str:
    """Return the positive class of the saved threshold, else of the run or the bundle; "" if there is none."""
    thresholds = classifier.thresholds
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
    return (
        "Thresholds are fitted on validation images, and none are available for this run: restore its images, or train "
        "with split.validation above 0."
    )


@dataclass(frozen=True, slots=True)
class _OutputReader:
    """Runs a classifier on images other than the evaluated ones: other splits of `labeled_images`, OOD images."""

    classifier: Classifier
    labeled_images: LabeledImages
    allowed: AllowedImages
    progress: Progress
    cache: bool

    def collect_outputs(self, split: Split, *, strict: bool = False) -> ModelOutputs | None:
        """Return the model outputs for a split; None if it is not available.

        `strict`: raise if some of its images are missing, instead of returning None.
        """
        try:
            samples = self.labeled_images.load(
                split, include_training=self.allowed.training, allow_missing=self.allowed.missing, cache=self.cache
            ).subset
        except MissingImagesError:
            if strict and not self.allowed.missing:
                raise
            return None
        except DataError:
            return None
        return (
            collect_outputs(self.classifier.predictor, samples, self.progress, f"the {split} split")
            if len(samples)
            else None
        )


def _evaluate_ood(
    reader: _OutputReader, outputs: ModelOutputs, result: EvaluationReport, sources: Sources
) -> OODResult:
    """Compare with OOD images, whose labels are ignored; the run's own images among them are excluded."""
    index = make_index(sources, reader.progress)
    run = reader.classifier.source_run
    run_hashes = set() if run is None else {row.sha256 for row in run.read_data() or ()}
    indices = [i for i, image in enumerate(index.images) if image.sha256 not in run_hashes]
    if not indices:
        raise DataError(f"All {len(index.images)} images of {index.name} belong to the run: give others with --ood.")
    note = f"{len(index.images) - len(indices)} images that belong to the run were excluded."
    note = "" if len(indices) == len(index.images) else note
    if len(indices) > MAX_OOD_IMAGES:
        sampled = np.sort(make_generator(0, "ood").permutation(len(indices))[:MAX_OOD_IMAGES]).tolist()
        indices = [indices[i] for i in sampled]
    predictor = reader.classifier.predictor
    decoded = decode_images(index.select(indices), predictor.preprocess, keep=reader.cache, progress=reader.progress)
    count = len(decoded.rows)
    samples = Subset(decoded.pixels.array, decoded.rows, np.zeros(count, np.int32), ("",) * count)
    ood_outputs = collect_outputs(predictor, samples, reader.progress, "OOD images").outputs
    ood_result = report.evaluate_ood(
        outputs, ood_outputs, reader.collect_outputs("train"), index.name, result.thresholds
    )
    return replace(ood_result, note=" ".join(filter(None, (ood_result.note, note))))


def _save_results(
    classifier: Classifier, result: EvaluationReport, labeled: LabeledSubset, *, save_thresholds: bool
) -> None:
    if save_thresholds and result.thresholds is not None:
        classifier.save_thresholds(result.thresholds)
    run = classifier.run
    if run is None or labeled.split is None or labeled.missing is not None or isinstance(classifier.predictor, FlipTTA):
        return
    run.write_evaluation(labeled.split, result.evaluation, result.to_dict())
    run.write_figures(drawings.plot_all(result, labeled.subset))


def find_label_issues(
    classifier: Classifier,
    patch: Path,
    *,
    allow_missing: bool = False,
    cache: bool = True,
    progress: Progress = no_progress,
) -> tuple[LabelIssue, ...]:
    """Find likely label errors in the run's own images, with out-of-fold heads on the features of the network.

    Writes a patch with a line for each (JSON lines: action, path, sha256, label, to, reason), worst first, and saves
    the same list in the run, unless images are missing. Raises `DataError` if the run's images are unavailable,
    `MissingImagesError` if some are missing, unless `allow_missing`.
    """
    records: list[ImageRecord] = []
    outputs: list[ModelOutputs] = []
    complete = True
    labeled_images = classifier.labeled_images(progress=progress)
    for split in SPLITS:
        if not _has_split(classifier, split):
            continue
        labeled = labeled_images.load(split, allow_missing=allow_missing, cache=cache)
        complete &= labeled.missing is None
        records += labeled.images
        outputs.append(collect_outputs(classifier.predictor, labeled.subset, progress, f"the {split} split"))
    features = np.concatenate([s.outputs.features for s in outputs])
    labels_given = np.concatenate([s.labels for s in outputs])
    seed = 0 if classifier.run is None else classifier.run.config.seed
    probabilities = label_issues.predict_out_of_fold(features, labels_given, len(classifier.classes), seed, progress)
    suspects = label_issues.select_label_issues(records, labels_given, probabilities, classifier.classes)
    lines = [s.to_patch() for s in suspects]
    _io.write_atomic(patch, jsonio.dump_lines(lines), "Choose another file with --find-label-issues.")
    if classifier.run is not None and complete:
        classifier.run.write_label_issues(lines)
    return suspects


def _has_split(classifier: Classifier, split: Split) -> bool:
    """Return whether the run has images in a split; without a run, reading them raises the right error."""
    rows = None if classifier.run is None else classifier.run.read_data()
    return rows is None or any(row.split == split for row in rows)
