"""Explain an evaluation in plain sentences, for the terminal and the model card; the page has its own template."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sightline.data.types import OUT_OF_FOLD
from sightline.errors import plural
from sightline.metrics import describe_metric

MAX_NAMED_CLASSES = 3  # other classes are only counted
_IN_PLACE_OF_ACCURACY = ("mean_iou", "mean_average_precision", "quadratic_weighted_kappa")  # masks, labels, grades


def describe_untested(names: Sequence[str], total: int, where: str) -> str:
    """Return a sentence about the classes, out of `total`, that have no image `where`; "" if all have images.

    >>> describe_untested(["defect"], 2, "the test split")
    "1 of 2 classes has no image in the test split and is not tested: 'defect'."
    """
    if not names:
        return ""
    one = len(names) == 1
    return (
        f"{len(names):,} of {total:,} classes {'has' if one else 'have'} no image in {where} and "
        f"{'is' if one else 'are'} not tested: {list_names(names)}."
    )


def list_names(names: Sequence[str]) -> str:
    """Return the first names of classes, and how many more there are.

    >>> list_names(["cat", "dog", "eel", "fox"])
    "'cat', 'dog', 'eel' and 1 more"
    """
    more = f" and {len(names) - MAX_NAMED_CLASSES:,} more" if len(names) > MAX_NAMED_CLASSES else ""
    return f"{', '.join(map(repr, names[:MAX_NAMED_CLASSES]))}{more}"


def describe_split(split: str) -> str:
    """Return a phrase for the evaluated images.

    >>> describe_split("test"), describe_split("out-of-fold"), describe_split("other")
    ('the test split', 'the out-of-fold predictions', 'the evaluated images')
    """
    if split == OUT_OF_FOLD:
        return f"the {OUT_OF_FOLD} predictions"
    return f"the {split} split" if split in {"train", "validation", "test"} else "the evaluated images"


def name_accuracy(task: str) -> str:
    """Return the name of a task's accuracy per epoch, after the unit that is classified.

    >>> name_accuracy("single_label"), name_accuracy("multi_label")
    ('accuracy', 'label accuracy')
    """
    return {"multi_label": "label accuracy", "segmentation": "pixel accuracy"}.get(task, "accuracy")


def describe_shift(value: Mapping[str, Any] | None, split: str) -> str:
    """Return a warning that the evaluated images differ from those of validation, or folds, by more than chance, or "".

    Images that a model was trained on always differ, as it has learned them.
    """
    if value is None or split == "train":
        return ""
    differences = []
    if value["accuracy_differs"]:
        low, high = (100 * end for end in value["accuracy_difference_interval"])
        differences.append(
            f"accuracy {100 * value['accuracy_difference']:+.1f} points (95% interval {low:+.1f} to {high:+.1f})"
        )
    if value["ece_differs"]:
        before, after = value["ece"], value["ece"] + value["ece_difference"]
        differences.append(f"calibration error {after:.3f} against {before:.3f} (p = {value['ece_p_value']:.2g})")
    if not differences:
        return ""
    name = describe_split(split)
    name = f"{name[0].upper()}{name[1:]} {'differs' if name.endswith('split') else 'differ'}"
    return (
        f"{name} significantly from {describe_split(value['split'])}: {', '.join(differences)}. Their distributions "
        f"differ, so thresholds and calibration from {describe_split(value['split'])} may not hold: check how the "
        "splits were made."
    )


def describe_leakage(value: Mapping[str, Any] | None, images: str = "these images", split: str = "") -> str:
    """Return how many of `images` are also in an earlier split, and the metric without them; "" if there are none.

    The metric is the accuracy, or the task's equivalent. For the `split` ``out-of-fold``, leaked images are those also
    in a fold on which the model that predicted them was trained.

    >>> others = {"accuracy": 0.5, "accuracy_interval": [0.2, 0.8], "count": 8}
    >>> describe_leakage({"count": 1, "identical": 1, "near_duplicates": 0, "without_leaked": others})
    '1 of these images is in an earlier split too (identical): accuracy 0.5000 (0.2000 to 0.8000) on the other 8.'
    >>> describe_leakage(
    ...     {"count": 9, "identical": 0, "near_duplicates": 9, "without_leaked": None}, split="out-of-fold"
    ... )
    '9 of these images are in another fold too (near duplicates); there are no others.'
    >>> for name in ("mean_iou", "quadratic_weighted_kappa"):
    ...     metrics = others | {name: {"value": 0.25, "interval": None}}
    ...     describe_leakage({"count": 1, "identical": 1, "near_duplicates": 0, "without_leaked": metrics})
    '1 of these images is in an earlier split too (identical): mean IoU 0.2500 on the other 8.'
    '1 of these images is in an earlier split too (identical): quadratic weighted kappa 0.2500 on the other 8.'
    """
    if value is None:
        return ""
    verb = "is" if value["count"] == 1 else "are"
    place = "another fold" if split == OUT_OF_FOLD else "an earlier split"
    start = f"{value['count']:,} of {images} {verb} in {place} too ({_describe_kinds(value)})"
    others = value["without_leaked"]
    if others is None:
        return f"{start}; there are no others."
    key = next((name for name in _IN_PLACE_OF_ACCURACY if name in others), "accuracy")
    name, rest = describe_metric(key), f"on the other {others['count']:,}."
    value, ends = others["accuracy"], others["accuracy_interval"]
    if key != "accuracy":
        value, ends = others[key]["value"], others[key]["interval"]
    if value is None:
        return f"{start}; {name} is not defined {rest}"
    interval = f" ({ends[0]:.4f} to {ends[1]:.4f})" if ends else ""
    return f"{start}: {name} {value:.4f}{interval} {rest}"


def describe_missing(value: Mapping[str, Any] | None) -> str:
    """Return how many of a run's own images were not evaluated; "" if all were.

    >>> describe_missing({"count": 3, "changed": 1, "total": 10})
    '3 of the 10 images of this split are not evaluated: 2 missing, 1 changed. The run keeps its metrics.'
    """
    if value is None:
        return ""
    verb = "is" if value["count"] == 1 else "are"
    return (
        f"{value['count']:,} of the {value['total']:,} images of this split {verb} not evaluated: "
        f"{value['count'] - value['changed']:,} missing, {value['changed']:,} changed. "
        "The run keeps its metrics."
    )


def describe_overlap(value: Mapping[str, Any] | None) -> str:
    """Return how many images of other data the model was trained or validated on; "" if none, as far as known.

    >>> describe_overlap({"included": False, "identical": 2, "near_duplicates": 1})
    '3 images that the model was trained or validated on were excluded (2 identical, 1 near duplicate); \
--include-training includes them.'
    """
    if value is None:
        return ""
    if value["identical"] is None:
        return "The training images of this model are not known, so none could be excluded."
    unknown = "" if value["near_duplicates"] is not None else "Too many images to search for near duplicates."
    count = value["identical"] + (value["near_duplicates"] or 0)
    if not count:
        return unknown
    what = f"{plural(count, 'image')} that the model was trained or validated on"
    verb = "was" if count == 1 else "were"
    line = f"{what} {verb} excluded ({_describe_kinds(value)}); --include-training includes them."
    if value["included"]:
        line = f"TRAINING IMAGES INCLUDED: {what} ({_describe_kinds(value)}). Expect lower metrics on new images."
    return f"{line} {unknown}".rstrip()


def describe_added(count: int) -> str:
    """Return how many images were added to a run's sources after training; "" for none.

    >>> describe_added(1)
    '1 image was added since training and is in no split: pass its folder to evaluate on it.'
    """
    if not count:
        return ""
    verbs = ("was", "is", "its", "it") if count == 1 else ("were", "are", "their", "them")
    return (
        f"{plural(count, 'image')} {verbs[0]} added since training and {verbs[1]} in no split: pass {verbs[2]} folder "
        f"to evaluate on {verbs[3]}."
    )


def list_cautions(metrics: Mapping[str, Any], split: str) -> Iterator[str]:
    """Yield each reason to read a metric with care, from the entry of a split in ``metrics.json``."""
    lines = (
        describe_overlap(metrics["training_images"]),
        describe_missing(metrics["missing"]),
        describe_added(metrics["added"]),
        describe_leakage(metrics["leaked"], split=split),
    )
    yield from filter(None, lines)


def _describe_kinds(value: Mapping[str, Any]) -> str:
    identical, near = value["identical"], value["near_duplicates"]
    if not near:
        return "identical"
    return f"{identical:,} identical, {plural(near, 'near duplicate')}" if identical else "near duplicates"
