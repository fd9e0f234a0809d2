"""`find_label_issues`: labels of a run's own images that may be wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline.api.classifier import Classifier
from sightline.api.report_writer import refresh_report
from sightline.callbacks import Progress, no_progress
from sightline.data.label_patch import PatchEntry, add_entries, read_entries, write_patch
from sightline.data.recorded_images import map_groups
from sightline.data.types import SPLITS, ImageRecord, Split, Subset
from sightline.evaluation import label_issues
from sightline.evaluation.bootstrap import number_groups
from sightline.evaluation.label_issues import LabelIssue, LabelSetIssue
from sightline.inference.predictor import ModelOutputs
from sightline.runs import report_images


@dataclass(frozen=True, slots=True)
class LabelCheck:
    """The labels that may be wrong, worst first, and the classes that have too few images to be checked.

    `agreement` is the fraction of the checked images whose label is what the out-of-fold models predict; None if images
    have several labels.
    """

    issues: tuple[LabelIssue | LabelSetIssue, ...]
    unchecked_classes: tuple[str, ...]
    agreement: float | None = None


def find_label_issues(
    classifier: Classifier,
    patch: Path,
    *,
    allow_missing: bool = False,
    cache: bool = True,
    progress: Progress = no_progress,
) -> LabelCheck:
    """Find labels of the run's own images that may be wrong, with out-of-fold heads on the features of the network.

    Adds a line for each to the patch (JSON lines: action, path, sha256, label, to, reason), worst first, unless the
    patch corrects the image already, and saves the list in the run, unless images are missing. An image is not reported
    if the patch, or the run's own patch, has a ``keep`` line with the same content and label; such lines of the run's
    patch are copied. Raises `DataError` if the run's images are unavailable, `MissingImagesError` if some are missing,
    unless `allow_missing`.
    """
    records: list[ImageRecord] = []
    outputs: list[ModelOutputs] = []
    subsets: list[Subset] = []
    complete = True
    labeled_images = classifier.labeled_images(progress=progress)
    for split in SPLITS:
        if not _has_split(classifier, split):
            continue
        labeled = labeled_images.load(split, allow_missing=allow_missing, cache=cache)
        complete &= labeled.missing is None
        records += labeled.images
        subsets.append(labeled.subset)
        outputs.append(
            classifier.task.collect_outputs(classifier.predictor, labeled.subset, progress, f"evaluating ({split})")
        )
    features = np.concatenate([s.outputs.features for s in outputs])
    labels_given = np.concatenate([s.labels for s in outputs])
    rows = () if classifier.run is None else classifier.run.read_data() or ()
    groups = number_groups([image.path for image in records], map_groups(rows))
    check = _check_labels(classifier, records, features, labels_given, progress, groups)
    entries = read_entries(patch)
    keep_lines = [
        entry
        for entry in (*entries, *read_entries(None if classifier.run is None else classifier.run.patch))
        if entry.action == "keep"
    ]
    known = {(entry.path, entry.sha256, entry.label) for entry in keep_lines}
    suspects = tuple(s for s in check.issues if (s.path, s.sha256, s.label) not in known)
    lines = [s.to_patch() for s in suspects]
    entries = add_entries(add_entries(entries, keep_lines), (PatchEntry(**line) for line in lines))
    write_patch(patch, entries, "Choose another file with --find-label-issues.")
    if classifier.run is not None and complete:
        classifier.run.write_label_issues(lines)
        worst = {issue.path for issue in suspects[: report_images.MAX_LABEL_ISSUES]}
        places = [(subset, i, path) for subset in subsets for i, path in enumerate(subset.paths) if path in worst]
        pixels = {path: subset.take(slice(i, i + 1))[0] for subset, i, path in places}
        report_images.write_label_issue_images(classifier.run, pixels)
        refresh_report(classifier.run)
    return replace(check, issues=suspects)


def _check_labels(
    classifier: Classifier,
    records: Sequence[ImageRecord],
    features: NDArray[np.float32],
    labels: NDArray[Any],
    progress: Progress,
    groups: NDArray[np.int64] | None = None,
) -> LabelCheck:
    """Return the labels that may be wrong in classes with enough images, or with enough `groups` [N] of them."""
    seed, classes = 0 if classifier.run is None else classifier.run.config.seed, classifier.classes
    if not classifier.task.targets.allows_several:
        repeated = label_issues.find_repeated_classes(labels, classes, groups)
        rows, names = np.flatnonzero(np.isin(labels, repeated)).tolist(), [classes[k] for k in repeated]
        numbers = np.searchsorted(repeated, labels[rows]).astype(np.int32)
        chosen = None if groups is None else groups[rows]
        probabilities = label_issues.predict_out_of_fold(features[rows], numbers, names, seed, progress, chosen)
        issues = label_issues.select_label_issues([records[i] for i in rows], numbers, probabilities, names)
        agreement = float((probabilities.argmax(1) == numbers).mean())
        return LabelCheck(issues, _list_others(classes, names), agreement)
    columns = label_issues.find_checkable_classes(labels, groups)
    labels, names = labels[:, columns], [classes[k] for k in columns]
    probabilities = label_issues.predict_labels_out_of_fold(classifier.task, features, labels, seed, progress, groups)
    set_issues = label_issues.select_label_set_issues(records, labels, probabilities, names)
    return LabelCheck(set_issues, _list_others(classes, names))


def _list_others(classes: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in classes if name not in names)


def _has_split(classifier: Classifier, split: Split) -> bool:
    """Return whether the run has images in a split; True without a run, where reading them raises the right error."""
    rows = None if classifier.run is None else classifier.run.read_data()
    return rows is None or any(row.split == split for row in rows)
