"""The sample that `watch` compares a log with: validation images from the bundle, or given labeled images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline.api.classifier import Classifier
from sightline.api.dataset import Dataset
from sightline.api.images import list_labeled_items
from sightline.callbacks import Callback
from sightline.data.masks import choose_labels
from sightline.errors import DataError, ModelError, plural, suggest
from sightline.evaluation.mask_outputs import collect_mask_outputs, sample_masks
from sightline.evaluation.validation_sample import MIN_IMAGES, ValidationSample
from sightline.inference import bundle, exported_folder
from sightline.inference.inputs import InputItem
from sightline.inference.predictor import Outputs
from sightline.inference.runner import ImageOutputs, predict_images
from sightline.inference.stream import decode_item
from sightline.runs.labeled_images import decode_labeled

NO_SAMPLE = (
    "{path} has no sample of its validation images: give labeled images that it was not trained on with --reference. A "
    "run and its bundle (a folder or a .zip) have one if there are at least {count} validation images."
)


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
        return ValidationSample.from_bytes(content, len(classifier.classes))
    except ModelError as error:
        raise ModelError(f"The model {path} cannot be used: {error}. Train it again, or give --reference.") from error


def make_sample(classifier: Classifier, reference: Dataset, callback: Callback) -> ValidationSample:
    """Return the sample of labeled images; those that cannot be read are left out, and a message counts them."""
    sample_images = _sample_masks if classifier.task.targets.are_masks else _sample_classes
    sample, count, failed = sample_images(classifier, reference, callback)
    if failed:
        callback.on_message(f"{plural(failed, 'reference image')} cannot be read")
    if sample is None:
        raise DataError(
            f"The reference has {plural(count, 'readable image')}: it needs at least {MIN_IMAGES} that the model was "
            "not trained on, and preferably some hundreds."
        )
    return sample


def _sample_masks(
    classifier: Classifier, reference: Dataset, callback: Callback
) -> tuple[ValidationSample | None, int, int]:
    """Return the sample, and how many images can be read and cannot."""
    targets, predictor = classifier.task.targets, classifier.predictor
    index = choose_labels(reference.read_index(callback.on_progress), targets)
    labeled = decode_labeled(index, classifier.classes, predictor.preprocess, targets, progress=callback.on_progress)
    count, failed = len(labeled.subset), len(index.unreadable) + len(labeled.unreadable)
    if not count:
        return None, count, failed
    return sample_masks(collect_mask_outputs(predictor, labeled.subset, callback.on_progress)), count, failed


def _sample_classes(
    classifier: Classifier, reference: Dataset, callback: Callback
) -> tuple[ValidationSample | None, int, int]:
    """Return the sample, and how many images can be read and cannot."""
    predictor, items = classifier.predictor, list_labeled_items(reference, callback.on_progress)
    images: list[ImageOutputs[InputItem, Any]] = []
    failed = 0
    decode = partial(decode_item, predictor.preprocess)
    for batch in predict_images(predictor, items, decode, lambda pixels: pixels, all_outputs=True):
        failed += sum(image.error is not None for image in batch)
        images += [replace(image, decoded=None) for image in batch if image.error is None]
    sample = None
    if images:
        names = ("probabilities", "logits", "features")
        outputs = Outputs(*(np.stack([getattr(image, name) for image in images]) for name in names))
        correct, labels = _check_correct(classifier, images), _check_labels(classifier, images)
        sample = ValidationSample.from_outputs(outputs, correct, labels)
    return sample, len(images), failed


def _check_correct(classifier: Classifier, images: Sequence[ImageOutputs[InputItem, Any]]) -> NDArray[np.bool_] | None:
    """Return whether the most probable class of each image is its label, bool [N]; None for several labels."""
    if classifier.task.targets.allows_several:
        return None
    for item in (image.item for image in images):
        _check_class(classifier, item, item.label)
    predicted = [classifier.classes[int(np.argmax(image.probabilities))] for image in images]  # type: ignore[arg-type]
    return np.array([label == image.item.label for label, image in zip(predicted, images, strict=True)], bool)


def _check_labels(classifier: Classifier, images: Sequence[ImageOutputs[InputItem, Any]]) -> NDArray[np.bool_] | None:
    """Return which classes each image has, bool [N, K]; None for one label."""
    targets = classifier.task.targets
    if not targets.allows_several:
        return None
    for item in (image.item for image in images):
        for name in targets.list_classes(item.label or ""):
            _check_class(classifier, item, name)
    encoded = targets.encode([image.item.label or "" for image in images], classifier.classes)
    return np.asarray(encoded, bool)


def _check_class(classifier: Classifier, item: InputItem, name: str | None) -> None:
    if name not in classifier.classes:
        raise DataError(
            f"The reference image {item.path} has the label {name!r}, which is not a class of the model."
            f"{suggest(str(name), classifier.classes)}"
        )
