"""`watch`: the log of a server against the validation images: drift, estimated accuracy, and what to label first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import jsonio
from sightline.api import owned_png
from sightline.api.classifier import Classifier
from sightline.api.dataset import Dataset
from sightline.api.images import list_labeled_items
from sightline.api.record_list import build_frame, format_html_table, format_text_table
from sightline.callbacks import Callback
from sightline.errors import DataError, ModelError, UsageError, plural, suggest
from sightline.evaluation.accuracy_estimate import AccuracyEstimate, estimate_accuracy
from sightline.evaluation.drift import Drift, DriftTest
from sightline.evaluation.labeling import MAX_CANDIDATES, choose_images
from sightline.evaluation.validation_sample import MIN_IMAGES, ValidationSample, compute_uncertainties
from sightline.inference import bundle, exported_folder
from sightline.inference.feature_log import FILES, LoggedImages, list_files, read_log
from sightline.inference.predictor import Outputs
from sightline.inference.runner import ImageOutputs, predict_images
from sightline.inference.stream import InputItem, decode_item
from sightline.report import plotting
from sightline.report.drift_plot import plot_drift

NO_SAMPLE = (
    "{path} has no sample of its validation images: give labeled images that it was not trained on with --reference. A "
    "run and its bundle (a folder or a .zip) have one if there are at least {count} validation images."
)
MAY_HAVE_DROPPED = (
    "{log} has all of its files and may have dropped its oldest images: if so, the test began anew with those that are "
    "left, and so did its probability of a false alarm"
)


@dataclass(frozen=True, slots=True)
class ImageToLabel:
    """An image that is worth a label: its id in the log, its time (UTC), and what was predicted."""

    id: str
    time: str
    label: str
    probability: float


@dataclass(frozen=True, slots=True, repr=False)
class WatchReport:
    """What the log of a server shows, which a notebook shows as a table.

    Attributes:
        log: The log.
        model: The model.
        count: The number of images in the log.
        first: The time of the first image (UTC).
        last: The time of the last image (UTC).
        drift: The test for drift: its alarm, if any, and its evidence after each image.
        accuracy: The estimated accuracy on all images, or on those since the start of the drift; None for a model of
            several labels.
        label_first: The images to label first, of these images.
        notes: What limits the statements, one sentence each.
        figure: The path of the figure, None without one.
    """

    log: str
    model: str
    count: int
    first: str
    last: str
    drift: Drift
    accuracy: AccuracyEstimate | None
    label_first: tuple[ImageToLabel, ...]
    notes: tuple[str, ...] = ()
    figure: str | None = None

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A row for each image to label, with the columns of ``--format csv``."""
        return [{"rank": rank} | jsonio.fields_to_dict(image) for rank, image in enumerate(self.label_first, 1)]

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
            "accuracy": None if self.accuracy is None else self.accuracy.to_dict(),
            "label_first": jsonio.to_plain(self.label_first),
            "notes": list(self.notes),
            "figure": self.figure,
        }

    def list_sentences(self) -> Iterator[tuple[str, str]]:
        """Yield what the log shows: the name of each line, and its sentence."""
        yield "images", f"{self.count:,}, {self.first} to {self.last}"
        yield "drift", _describe_drift(self.drift)
        if self.accuracy is not None:
            yield "accuracy", _describe_accuracy(self.accuracy, since_start=self.drift.start is not None)
            yield from (("", f"not to be trusted: {caveat}") for caveat in self.accuracy.caveats)
        yield from (("note", note) for note in self.notes)

    def __repr__(self) -> str:
        lines = [f"{name:<10} {text}".rstrip() for name, text in self.list_sentences()]
        return "\n".join([*lines, "", "label first", format_text_table(self.rows)])

    def _repr_html_(self) -> str:
        title = ". ".join(f"{name}: {text}" if name else text for name, text in self.list_sentences())
        return format_html_table(self.rows, title=f"{title}. Label first:")


def _describe_drift(drift: Drift) -> str:
    false_alarms = f"false alarms: at most {drift.level:.3g} over all looks"
    if drift.alarm is None or drift.start is None:
        return f"none shown: evidence {drift.evidence:.2g}, of {1 / drift.level:g} for an alarm ({false_alarms})"
    return (
        f"yes, by {drift.score}: alarm at image {drift.alarm:,}, most likely since image {drift.start:,}; evidence "
        f"{drift.evidence:.2g} ({false_alarms})"
    )


def _describe_accuracy(estimate: AccuracyEstimate, *, since_start: bool) -> str:
    value, interval = estimate.accuracy.value or 0.0, estimate.accuracy.interval
    text = f"about {value:.3f}"
    text += f" ({estimate.accuracy.note})" if interval is None else f" ({interval.low:.3f} to {interval.high:.3f})"
    where = " since the start of the drift" if since_start else ""
    return (
        f"{text}, estimated without labels on {plural(estimate.count, 'image')}{where}; "
        f"{estimate.validation_accuracy:.3f} on validation images"
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
    if classifier.task.targets.are_masks:
        raise UsageError("This model predicts masks: watch compares the images of models that classify whole images.")
    if not 0 < level < 1:
        raise UsageError(f"level is the probability of a false alarm, between 0 and 1, not {level:g}.")
    if top < 0:
        raise UsageError(f"top is the number of images to label, at least 0, not {top}.")
    if figure is not None:
        owned_png.check_output(figure, "--figure")
        plotting.check_packages()
    callback = callback or Callback()
    sample = load_sample(classifier) if reference is None else _make_sample(classifier, reference, callback)
    notes: list[str] = []
    images = read_log(log, classifier.feature_model_id, classifier.classes, notes.append)
    stream = _Stream.read(sample, log, images, level)
    if len(list_files(log)) == FILES:
        notes.append(MAY_HAVE_DROPPED.format(log=log))
    report = WatchReport(
        str(log), str(classifier.path or "model"), len(stream.confidences), stream.first, stream.recent[-1].times[-1],
        stream.drift, _estimate(sample, stream), _choose(classifier, stream, top), tuple(notes),
    )  # fmt: skip
    if figure is not None:
        owned_png.save_owned_png(figure, plot_drift(report.drift, log.name))
        report = replace(report, figure=str(figure))
    return report


@dataclass(frozen=True, slots=True, eq=False)
class _Stream:
    """What is kept of a log: the outcome of the test, the confidences, and all of the last `MAX_CANDIDATES` images."""

    drift: Drift
    confidences: NDArray[np.float32]
    recent: Sequence[LoggedImages]
    first: str

    @classmethod
    def read(cls, sample: ValidationSample, log: Path, batches: Iterable[LoggedImages], level: float) -> _Stream:
        test, confidences, recent, first = DriftTest(sample, level), [np.zeros(0, np.float32)], [], ""
        for batch in batches:
            if batch.features.shape[1] != sample.bank.shape[1]:
                raise DataError(
                    f"{log} holds {batch.features.shape[1]} features of each image, and the model has "
                    f"{sample.bank.shape[1]}: give the model that was served."
                )
            test.add(batch.features, compute_uncertainties(batch.probabilities))
            confidences.append(batch.probabilities.max(1))
            first = first or batch.times[0]
            recent.append(batch)
            while sum(map(len, recent[1:])) >= MAX_CANDIDATES:
                del recent[0]
        if not recent:
            raise DataError(f"{log} has no images yet.")
        return cls(test.finish(), np.concatenate(confidences), recent, first)


def _estimate(sample: ValidationSample, stream: _Stream) -> AccuracyEstimate | None:
    if not len(sample.correct):
        return None
    new = stream.confidences[(stream.drift.start or 1) - 1 :]
    return estimate_accuracy(sample.confidences, sample.correct, new, stream.drift)


def _choose(classifier: Classifier, stream: _Stream, count: int) -> tuple[ImageToLabel, ...]:
    """Choose images to label among the last ones, and of those the ones since the start of a drift."""
    features = np.concatenate([batch.features for batch in stream.recent])
    probabilities = np.concatenate([batch.probabilities for batch in stream.recent])
    ids = [image_id for batch in stream.recent for image_id in batch.ids]
    times = [time for batch in stream.recent for time in batch.times]
    before = len(stream.confidences) - len(ids)
    skipped = max(0, (stream.drift.start or 1) - 1 - before, len(ids) - MAX_CANDIDATES)
    several = classifier.task.targets.allows_several
    positions = choose_images(features[skipped:], probabilities[skipped:], count, several=several)
    chosen = []
    for position in (skipped + i for i in positions):
        predicted = int(probabilities[position].argmax())
        probability = float(probabilities[position, predicted])
        chosen.append(ImageToLabel(ids[position], times[position], classifier.classes[predicted], probability))
    return tuple(chosen)


def load_sample(classifier: Classifier) -> ValidationSample:
    """Return the sample of validation images in the bundle of a model; raises `ModelError` if it has none."""
    run, path = classifier.run, classifier.path
    place = path if run is None else run.bundle
    content = None
    if place is not None and exported_folder.find(place) is None and bundle.is_bundle(place):
        content = bundle.read(place).files.get(bundle.SAMPLE_FILE)
    if content is None:
        raise ModelError(NO_SAMPLE.format(path=path or "The model", count=MIN_IMAGES))
    try:
        return ValidationSample.from_bytes(content)
    except ModelError as error:
        raise ModelError(f"The model {path} cannot be used: {error}. Train it again, or give --reference.") from error


def _make_sample(classifier: Classifier, reference: Dataset, callback: Callback) -> ValidationSample:
    """Return the sample of labeled images; those that cannot be read are left out, and a message counts them."""
    items = list_labeled_items(reference, callback.on_progress)
    predictor = classifier.predictor
    images: list[ImageOutputs[InputItem, Any]] = []
    failed = 0
    decode = partial(decode_item, predictor.preprocess)
    for batch in predict_images(predictor, items, decode, lambda pixels: pixels, all_outputs=True):
        failed += sum(image.error is not None for image in batch)
        images += [replace(image, decoded=None) for image in batch if image.error is None]
    if failed:
        callback.on_message(f"{plural(failed, 'reference image')} cannot be read")
    sample = None
    if images:
        names = ("probabilities", "logits", "features")
        outputs = Outputs(*(np.stack([getattr(image, name) for image in images]) for name in names))
        sample = ValidationSample.from_outputs(outputs, _check_correct(classifier, images))
    if sample is None:
        raise DataError(
            f"The reference has {plural(len(images), 'readable image')}: it takes at least {MIN_IMAGES} that the model "
            "was not trained on, better some hundreds."
        )
    return sample


def _check_correct(classifier: Classifier, images: Sequence[ImageOutputs[InputItem, Any]]) -> NDArray[np.bool_] | None:
    """Return whether the most probable class of each image is its label, bool [N]; None for several labels."""
    if classifier.task.targets.allows_several:
        return None
    for item in (image.item for image in images):
        if item.label not in classifier.classes:
            raise DataError(
                f"The reference image {item.path} has the label {item.label!r}, which is not a class of the model."
                f"{suggest(str(item.label), classifier.classes)}"
            )
    predicted = [classifier.classes[int(np.argmax(image.probabilities))] for image in images]  # type: ignore[arg-type]
    return np.array([label == image.item.label for label, image in zip(predicted, images, strict=True)], bool)
