"""`watch`: compare a server's log with the validation images: drift, estimated accuracy, and what to label first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import _io, jsonio
from sightline.api import owned_png
from sightline.api.classifier import Classifier
from sightline.api.dataset import Dataset
from sightline.api.record_list import build_frame, format_html_table, format_text_table
from sightline.api.reference_sample import load_sample, make_sample
from sightline.callbacks import Callback
from sightline.errors import DataError, UsageError, plural
from sightline.evaluation.accuracy_estimate import AccuracyEstimate, estimate_accuracy
from sightline.evaluation.badge import MAX_CANDIDATES, choose_images
from sightline.evaluation.drift import Drift, DriftTest
from sightline.evaluation.iou_estimate import IouEstimate, estimate_mean_iou
from sightline.evaluation.label_estimate import LabelEstimate, estimate_micro_f1
from sightline.evaluation.label_thresholds import list_thresholds
from sightline.evaluation.results import Metric
from sightline.evaluation.validation_sample import ValidationSample, compute_uncertainties
from sightline.inference.feature_log import FILES, list_files
from sightline.inference.logged_images import LoggedImages, read_log
from sightline.report import plotting
from sightline.report.drift_plot import plot_drift

MAY_HAVE_DROPPED = (
    "{log} has all of its files and may have dropped its oldest images: if so, the test, and its probability of a "
    "false alarm, started over with those that are left"
)


@dataclass(frozen=True, slots=True)
class ImageToLabel:
    """An image that is worth a label: its id in the log, its time (UTC), and what was predicted.

    For a mask, `label` is the class with the largest mean `probability`, and `quality` the expected IoU.
    """

    id: str
    time: str
    label: str
    probability: float
    quality: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values, the quality only for a mask."""
        return jsonio.fields_to_dict(self, skip=["quality"] if self.quality is None else [])


@dataclass(frozen=True, slots=True, repr=False)
class WatchReport:
    """The results of a comparison of a server's log with validation images; shown as a table in a notebook.

    Attributes:
        log: The log.
        model: The model.
        count: The number of images in the log.
        first: The time of the first image (UTC).
        last: The time of the last image (UTC).
        drift: The test for drift: its alarm, if any, and its evidence after each image.
        accuracy: The estimated accuracy on all images, or on those since the start of the drift; None for a model of
            several labels or of masks.
        mask_iou: The estimated mean IoU of the masks of these images; None for other models.
        micro_f1: The estimated micro F1 of these images, if they may have several labels; None for other models.
        label_first: The images to label first, of these images.
        notes: The limitations of these results, one sentence each.
        figure: The path of the figure, None without one.
    """

    log: str
    model: str
    count: int
    first: str
    last: str
    drift: Drift
    accuracy: AccuracyEstimate | None
    mask_iou: IouEstimate | None
    micro_f1: LabelEstimate | None
    label_first: tuple[ImageToLabel, ...]
    notes: tuple[str, ...] = ()
    figure: str | None = None

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A row for each image to label, with the columns of ``--format csv``."""
        return [{"rank": rank} | image.to_dict() for rank, image in enumerate(self.label_first, 1)]

    def to_frame(self) -> Any:
        """Return the rows as a pandas DataFrame; raises `MissingExtraError` without pandas."""
        return build_frame(self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``watch --format json``."""
        return {
            "log": self.log,
            "model": self.model,
            "images": self.count,
            "first": self.first,
            "last": self.last,
            "drifted": self.drift.alarm is not None,
            "drift": jsonio.fields_to_dict(self.drift, skip=["log_evidence"]),
        } | {
            name: jsonio.to_plain(getattr(self, name))
            for name in ("accuracy", "mask_iou", "micro_f1", "label_first", "notes", "figure")
        }

    def list_sentences(self) -> Iterator[tuple[str, str]]:
        """Yield the results: the name of each line, and its sentence."""
        yield "images", f"{self.count:,}, {self.first} to {self.last}"
        yield "drift", _describe_drift(self.drift)
        since_start = self.drift.start is not None
        if self.accuracy is not None:
            values = self.accuracy.accuracy, self.accuracy.count, self.accuracy.validation_accuracy
            yield "accuracy", _describe_estimate(*values, since_start=since_start)
        if self.mask_iou is not None:
            values = self.mask_iou.iou, self.mask_iou.count, self.mask_iou.validation_iou
            yield "mask IoU", _describe_estimate(*values, since_start=since_start)
        if self.micro_f1 is not None:
            count, validation_f1 = self.micro_f1.count, self.micro_f1.validation_micro_f1
            yield "micro F1", _describe_estimate(self.micro_f1.micro_f1, count, validation_f1, since_start=since_start)
        estimate = self.accuracy or self.mask_iou or self.micro_f1
        yield from (("", f"not to be trusted: {caveat}") for caveat in (() if estimate is None else estimate.caveats))
        yield from (("note", note) for note in self.notes)

    def __repr__(self) -> str:
        lines = [f"{name:<10} {text}".rstrip() for name, text in self.list_sentences()]
        return "\n".join([*lines, "", "label first", format_text_table(self.rows)])

    def _repr_html_(self) -> str:
        title = ". ".join(f"{name}: {text}" if name else text for name, text in self.list_sentences())
        return format_html_table(self.rows, title=f"{title}. Label first:")


def _describe_drift(drift: Drift) -> str:
    false_alarms = f"false alarms: at most {drift.level:.3g} over all looks"
    evidence = f"{float(f'{drift.evidence:.2g}'):g}"  # two digits, but 900 instead of 9e+02
    if drift.alarm is None or drift.start is None:
        return f"none shown: evidence {evidence}, of {1 / drift.level:g} for an alarm ({false_alarms})"
    return (
        f"yes, by {drift.score}: alarm at image {drift.alarm:,}, most likely since image {drift.start:,}; evidence "
        f"{evidence} ({false_alarms})"
    )


def _describe_estimate(metric: Metric, count: int, on_validation: float, *, since_start: bool) -> str:
    value, interval = metric.value or 0.0, metric.interval
    text = f"about {value:.3f}"
    text += f" ({metric.note})" if interval is None else f" ({interval.low:.3f} to {interval.high:.3f})"
    where = " since the start of the drift" if since_start else ""
    return (
        f"{text}, estimated without labels on {plural(count, 'image')}{where}; {on_validation:.3f} on validation images"
    )


def watch(
    classifier: Classifier,
    log: Path,
    *,
    reference: Dataset | None = None,
    level: float = 0.05,
    top: int = 10,
    figure: Path | None = None,
    callback: Callback | None = None,
) -> WatchReport:
    """Compare the images of a log with validation images; see `Classifier.watch`."""
    if not 0 < level < 1:
        raise UsageError(f"level is the probability of a false alarm, between 0 and 1, not {level:g}.")
    if top < 0:
        raise UsageError(f"top is the number of images to label, at least 0, not {top}.")
    if figure is not None:
        figure = owned_png.check_output(figure, "--figure")
        plotting.check_packages()
    callback, log = callback or Callback(), _io.expand_home(log)
    sample = load_sample(classifier) if reference is None else make_sample(classifier, reference, callback)
    notes: list[str] = []
    images = read_log(log, classifier.feature_model_id, classifier.classes, notes.append)
    stream = _Stream.read(sample, log, images, level, are_masks=classifier.task.targets.are_masks)
    if len(list_files(log)) == FILES:
        notes.append(MAY_HAVE_DROPPED.format(log=log))
    report = WatchReport(
        str(log), str(classifier.path or "model"), len(stream.confidences), stream.first, stream.recent[-1].times[-1],
        stream.drift, _estimate(sample, stream), _estimate_iou(sample, stream),
        _estimate_labels(classifier, sample, stream), _choose(classifier, stream, top), tuple(notes),
    )  # fmt: skip
    if figure is not None:
        owned_png.save_owned_png(figure, plot_drift(report.drift, log.name))
        report = replace(report, figure=str(figure))
    return report


@dataclass(frozen=True, slots=True, eq=False)
class _Stream:
    """The data kept from a log: the outcome of the test, the confidences, and all of the last `MAX_CANDIDATES` images.

    The confidence of a mask is its quality. `probabilities` float32 [N, K] are those of all images if they may have
    several labels, else empty.
    """

    drift: Drift
    confidences: NDArray[np.float64]
    recent: Sequence[LoggedImages]
    first: str
    probabilities: NDArray[np.float32]

    @property
    def start(self) -> int:
        """The position of the first image since the start of a drift; 0 without one."""
        return (self.drift.start or 1) - 1

    @classmethod
    def read(
        cls, sample: ValidationSample, log: Path, batches: Iterable[LoggedImages], level: float, *, are_masks: bool
    ) -> _Stream:
        test, confidences, recent, first = DriftTest(sample, level), [np.zeros(0)], [], ""
        probabilities = [np.zeros((0, sample.labels.shape[1]), np.float32)]
        for batch in batches:
            if batch.features.shape[1] != sample.bank.shape[1]:
                raise DataError(
                    f"{log} holds {batch.features.shape[1]} features of each image, and the model has "
                    f"{sample.bank.shape[1]}: give the model that was served."
                )
            if are_masks:
                _check_quality(log, batch)
                uncertainties, sureness = 1 - batch.quality, batch.quality
            else:
                uncertainties = compute_uncertainties(batch.probabilities)
                sureness = batch.probabilities.max(1).astype(np.float64)
            test.add(batch.features, uncertainties)
            confidences.append(sureness)
            if len(sample.labels):
                probabilities.append(batch.probabilities)
            first = first or batch.times[0]
            recent.append(batch)
            while sum(map(len, recent[1:])) >= MAX_CANDIDATES:
                del recent[0]
        if not recent:
            raise DataError(f"{log} has no images yet.")
        return cls(test.finish(), np.concatenate(confidences), recent, first, np.concatenate(probabilities))


def _check_quality(log: Path, images: LoggedImages) -> None:
    if np.isnan(images.quality).any():
        raise DataError(f"{log} does not record the quality of masks: give the log of a server that runs this model.")


def _estimate_iou(sample: ValidationSample, stream: _Stream) -> IouEstimate | None:
    if not len(sample.ious):
        return None
    new, groups = stream.confidences[stream.start :], sample.get_groups(len(sample.ious))
    quality, ious = (values.astype(np.float64) for values in (sample.confidences, sample.ious))
    return estimate_mean_iou(quality, ious, new, stream.drift, groups)


def _estimate(sample: ValidationSample, stream: _Stream) -> AccuracyEstimate | None:
    if not len(sample.correct):
        return None
    new, groups = stream.confidences[stream.start :].astype(np.float32), sample.get_groups(len(sample.correct))
    return estimate_accuracy(sample.confidences, sample.correct, new, stream.drift, groups)


def _estimate_labels(classifier: Classifier, sample: ValidationSample, stream: _Stream) -> LabelEstimate | None:
    if not len(sample.labels):
        return None
    thresholds = list_thresholds(classifier.thresholds, classifier.classes)
    new, groups = stream.probabilities[stream.start :], sample.get_groups(len(sample.labels))
    return estimate_micro_f1(sample.probabilities, sample.labels, new, thresholds, stream.drift, groups)


def _choose(classifier: Classifier, stream: _Stream, count: int) -> tuple[ImageToLabel, ...]:
    """Choose images to label among the last ones; after a drift, only among those since its start.

    The uncertainty of a mask is one minus its quality.
    """
    features = np.concatenate([batch.features for batch in stream.recent])
    probabilities = np.concatenate([batch.probabilities for batch in stream.recent])
    ids = [image_id for batch in stream.recent for image_id in batch.ids]
    times = [time for batch in stream.recent for time in batch.times]
    before = len(stream.confidences) - len(ids)
    skipped = max(0, stream.start - before, len(ids) - MAX_CANDIDATES)
    targets = classifier.task.targets
    quality = np.concatenate([batch.quality for batch in stream.recent])
    doubts = probabilities
    if targets.are_masks:
        doubts = (np.stack([1 + quality, 1 - quality], 1) / 2).astype(np.float32)
    several = targets.allows_several and not targets.are_masks
    positions = choose_images(features[skipped:], doubts[skipped:], count, several=several)
    chosen = []
    for position in (skipped + i for i in positions):
        predicted = int(probabilities[position].argmax())
        probability = float(probabilities[position, predicted])
        chosen.append(
            ImageToLabel(
                ids[position], times[position], classifier.classes[predicted], probability,
                float(quality[position]) if targets.are_masks else None,
            )
        )  # fmt: skip
    return tuple(chosen)
