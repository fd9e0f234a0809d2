"""Images in memory with their labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline.data.sources.listing import SourceItem
from sightline.data.storage import ArrayStore
from sightline.data.types import Split
from sightline.errors import DataError, UsageError, first_line, plural, suggest
from sightline.preprocessing import suggest_conversion

ONE_LABEL = "give one label for each image; for several, or masks, save them as files and use Dataset.from_dataframe"


def list_array_items(
    pixels: NDArray[np.uint8],
    labels: NDArray[Any] | Sequence[Any],
    name: str,
    split: Split | None = None,
    classes: Sequence[str] | None = None,
) -> list[SourceItem]:
    """Return an entry for each image of an array; `labels` are class names, or integer indices into `classes`.

    `pixels` are uint8 [N, H, W] or [N, H, W, 1, 3 or 4]; raises `DataError` for other arrays, and for labels that do
    not fit. Without `classes`, each integer is its own class name.
    """
    if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4) or pixels.shape[3:] not in ((), (1,), (3,), (4,)):
        hint = suggest_conversion(pixels) or ": for rows of pixels, use x.reshape(len(x), height, width)" * (
            pixels.ndim == 2
        )
        raise DataError(
            f"{name}: pixels must be uint8 [N, H, W] or [N, H, W, 1, 3 or 4], got {pixels.dtype} {list(pixels.shape)}"
            f"{hint}."
        )
    store = ArrayStore(pixels, name)
    class_names = None if classes is None else _list_classes(classes)
    if isinstance(labels, list | tuple):  # in a text array, a missing label would become 'None' or 'nan'
        for i, label in enumerate(labels):
            _name_label(label, i, name)
    labels = _to_label_array(labels, name)
    if labels.size != len(pixels):
        hint = ""
        if labels.ndim > 1 and len(labels) == len(pixels):
            is_one_hot = labels.ndim == 2 and labels.dtype.kind not in "OSU"
            hint = ": for one-hot rows, use y.argmax(1)" if is_one_hot else f": {ONE_LABEL}"
        raise DataError(f"{name}: {plural(len(pixels), 'image')} but {plural(labels.size, 'label')}{hint}.")
    are_numbers = labels.dtype.kind in "iu"
    name_labels = _name_numbers if are_numbers else _name_texts
    return [
        SourceItem(store, str(i), f"{name}[{i}]", label, split, is_number=are_numbers and not class_names)
        for i, label in enumerate(name_labels(labels.reshape(-1), name, class_names))
    ]


def _name_numbers(labels: NDArray[Any], name: str, classes: Sequence[str] | None) -> list[str]:
    """Return the class of each number; raises `DataError` for one that is not a position in `classes`."""
    if labels.min(initial=0) < 0 or (classes and labels.max(initial=0) >= len(classes)):
        there_are = f"there are {len(classes)} classes," if classes else "classes are"
        raise DataError(f"{name}: labels run from {labels.min()} to {labels.max()}, but {there_are} numbered from 0.")
    return [classes[i] if classes else str(i) for i in labels.tolist()]


def _name_texts(labels: NDArray[Any], name: str, classes: Sequence[str] | None) -> list[str]:
    """Return each label as the name of a class; raises `DataError` for one that is not in `classes`."""
    names = [_name_label(label, i, name) for i, label in enumerate(labels.tolist())]
    if classes is not None and (unknown := sorted(set(names) - set(classes))):
        is_number = labels.dtype.kind in "bf"
        advice = " Integers index them: use y.astype(int)." if is_number else suggest(unknown[0], classes)
        raise DataError(f"{name}: {unknown[0]!r} is a label but not one of `classes`.{advice}")
    return names


def _list_classes(classes: Sequence[str]) -> list[str]:
    """Return the class names as a list; `classes` may be an array, which has no truth value."""
    if isinstance(classes, str | AbstractSet | Mapping) or not hasattr(classes, "__iter__"):
        raise UsageError(f"classes must be a list of names in the order of their numbers, not {classes!r}.")
    classes = list(classes)
    names = [name_class(each) for each in classes if not is_missing(each)]
    if len({*names} - {""}) < len(classes):
        raise UsageError(f"classes must be a list of different names, none of them missing, not {classes}.")
    return names


def _to_label_array(labels: NDArray[Any] | Sequence[Any], name: str) -> NDArray[Any]:
    try:
        array = to_numpy(labels, f"{name}: the labels")
    except ValueError:
        raise DataError(f"{name}: the labels are rows of different lengths: {ONE_LABEL}.") from None
    if not array.ndim:
        raise DataError(f"{name}: the labels must be a list or an array with one for each image, not {labels!r:.80}.")
    return array


def to_numpy(values: Any, name: str) -> NDArray[Any]:
    """Convert arrays, tensors and lists of them to a NumPy array; raises `ValueError` for lists of different lengths.

    Raises `UsageError` for a tensor that cannot be converted: one on a GPU, of bfloat16 or with gradients.
    """
    try:
        return np.asarray(values)
    except (TypeError, RuntimeError) as error:
        raise UsageError(f"{name} cannot be converted to a NumPy array: {first_line(error)}") from error


def explain_no_array(x: Any) -> str:
    """Explain why the images `x` are not one array.

    >>> explain_no_array([("image", "label")])[:26]
    'The items of x are tuples,'
    """
    first = x if isinstance(x, str | Path) or not hasattr(x, "__len__") else next(iter(x), None)
    if isinstance(first, str | Path):
        return (
            "x holds paths, not pixels: use Dataset.from_folder for a folder, or Dataset.from_dataframe for paths with "
            "labels."
        )
    if first is x:
        return (
            f"x is of the type {type(x).__name__}: give one uint8 array [N, H, W, C], as np.stack(list(images)) makes."
        )
    if isinstance(first, tuple):
        return (
            "The items of x are tuples, such as an image with its label: give the images alone as x, as one uint8 "
            "array [N, H, W, C], and their labels as y."
        )
    return (
        "The images in x are not one array: bring them to one size and use np.stack(x), or save them as files and use "
        "Dataset.from_folder."
    )


def _name_label(label: Any, position: int, name: str) -> str:
    if is_missing(label) or (isinstance(label, str | bytes) and not label):
        raise DataError(f"{name}[{position}] has no label ({label!r}): leave the image out, or give it a label.")
    if isinstance(label, AbstractSet | Mapping):
        raise DataError(f"{name}[{position}] has the label {label}: {ONE_LABEL}.")
    return str(int(label)) if isinstance(label, float) and label.is_integer() else name_class(label)


def name_class(label: Any) -> str:
    """Return a label as a class name; bytes, such as from a fixed-width NumPy array, are decoded as UTF-8.

    >>> name_class(b"cat"), name_class("cat"), name_class(True)
    ('cat', 'cat', 'True')
    """
    return label.decode("utf-8", "surrogateescape") if isinstance(label, bytes) else str(label)


def is_missing(value: Any) -> bool:
    """Return whether a value is None, NaN, or the ``NA`` or ``NaT`` of pandas, without importing pandas."""
    if isinstance(value, float | np.floating):
        return math.isnan(value)
    return value is None or type(value).__name__ in {"NAType", "NaTType"}
