"""The inputs and results of a `Classifier`: images in any form, their labels, predictions as rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sightline.api.dataset import Dataset
from sightline.api.options import Settings, refuse_decoding, to_assignments
from sightline.callbacks import Batch, Callback, Progress, as_callback, track
from sightline.data.indexing import Sources
from sightline.data.remote import is_url
from sightline.data.sources.arrays import name_class, to_numpy
from sightline.errors import DataError, ImageError, UsageError, list_some, plural, suggest
from sightline.explain.explanation import Explanation
from sightline.inference.background_count import BackgroundCount
from sightline.inference.embeddings import Embeddings
from sightline.inference.inputs import InputItem, make_items, parse_file_limits, report_notes
from sightline.inference.results import Prediction
from sightline.preprocessing import suggest_conversion

ImageLike = str | Path | bytes | bytearray | memoryview | BinaryIO | NDArray[np.uint8] | Image.Image
"""A path (a file, a folder or a glob), an encoded image, a binary file, uint8 pixels or a Pillow image."""

_ONE_IMAGE = str | Path | bytes | bytearray | memoryview | Image.Image | InputItem
_EXPECTED = "images are paths, encoded bytes, binary files, uint8 arrays or Pillow images, or several of these"


def split_images(images: ImageLike | Iterable[ImageLike | InputItem], channels: int) -> Iterator[Any]:
    """Yield one or several images one by one, files as bytes and tensors as NumPy arrays.

    An array is several images if it is [N, H, W, C], or [N, H, W] with W > 4. Raises `UsageError` for anything else,
    and for 3 or 4 planes if the model takes RGB (`channels` is 3): they may be one image with its channels first.
    """
    if isinstance(images, Dataset):
        raise UsageError(
            "images is a Dataset: clf.evaluate(data).predictions has the predictions of its images, with their labels."
        )
    if isinstance(images, Embeddings):  # NumPy would read them as an array
        raise UsageError(f"images is of the type Embeddings, but {_EXPECTED}.")
    if isinstance(images, _ONE_IMAGE) or hasattr(images, "read"):
        return iter([_read_image(images)])
    if hasattr(images, "columns") and len(images.columns) != 1:
        raise UsageError("images is a table: give its column of paths, as in frame['path'].")
    if hasattr(images, "__array__"):
        return _split_array(to_numpy(images, "images"), channels)
    if isinstance(images, Mapping) or not isinstance(images, Iterable):
        raise UsageError(f"images is of the type {type(images).__name__}, but {_EXPECTED}.")
    return map(_read_image, images)


def list_items(
    images: ImageLike | Iterable[ImageLike | InputItem],
    channels: int,
    settings: Settings,
    callback: Callback | None = None,
) -> Iterator[InputItem]:
    """Return one or several images as items for a model with `channels` channels; raises like `split_images`.

    `callback` receives a message about each archive in which a name occurs more than once.
    """
    items = make_items(split_images(images, channels), parse_file_limits(to_assignments(settings)))
    return items if callback is None else report_notes(items, as_callback(callback).on_message)


@contextmanager
def count_images(images: Any, channels: int, settings: Settings) -> Iterator[Callable[[], int | None]]:
    """Yield a function that returns the number of `images`, counted in the background while the block runs.

    The function returns None until the count is complete, and always for images that can be read only once or that are
    at an address.
    """
    listed = images if isinstance(images, list | tuple) else [images]
    can_repeat = isinstance(images, list | tuple | str | Path) or hasattr(images, "__array__")
    if not can_repeat or any(hasattr(one, "read") or is_url(str(one)) for one in listed if not _is_in_memory(one)):
        yield lambda: None
        return
    with BackgroundCount(list_items(images, channels, settings)) as count:
        yield lambda: count.value


def _is_in_memory(image: Any) -> bool:
    return hasattr(image, "__array__") or isinstance(image, InputItem | bytes | bytearray | memoryview)


def track_images(
    batches: Iterator[Batch],
    task: str,
    images: Any,
    channels: int,
    settings: Settings,
    callback: Callback | None,
    measure: Callable[[Batch], int] = lambda _: 1,
) -> Iterator[Batch]:
    """Yield the results of `images`; `callback` receives their progress, with the total of `count_images`."""
    if callback is None:
        yield from batches
        return
    with count_images(images, channels, settings) as count:
        yield from track(batches, task, callback.on_progress, count, measure)


def list_data(
    data: Dataset | Sources | None, column: Settings | None = None, settings: Settings = ()
) -> Sources | None:
    """Return the sources of `data` for a model, read with `column` and `settings`; None if `data` is None."""
    refuse_decoding(settings)
    if data is not None:
        return Dataset.wrap(data, column=column, set=settings).listed_sources
    if column or settings:
        raise UsageError("--column and --set say how to read images: name some, or leave these options out.")
    return None


def list_labeled_items(data: Dataset, progress: Progress) -> Iterator[InputItem]:
    """Yield the images of `data` with their labels, then the unreadable files, which raise their reason when read."""
    index = data.read_index(progress)
    for position, image in enumerate(index.images):
        yield InputItem(image.path, partial(index.read, position), image.label)
    for file in index.unreadable:
        yield InputItem(file.path, partial(_refuse, file.reason), file.label or None)


def _refuse(reason: str) -> Any:
    raise ImageError(reason)


def _split_array(array: NDArray[Any], channels: int) -> Iterator[Any]:
    if array.dtype.kind in "OSU":  # paths, as in a column of a DataFrame
        return map(_read_image, array.reshape(-1).tolist())
    if array.ndim < 3 or (array.ndim == 3 and array.shape[-1] <= 4):
        return iter([array])
    # Up to 15 channels, as scientific cameras have, are one image [H, W, C]; [N, H, W] is seldom that narrow.
    has_channels = array.ndim == 4 or 4 * array.shape[-1] <= min(60, *array.shape[:2])
    if has_channels and array.dtype == np.uint8 and (hint := suggest_conversion(array)):
        raise UsageError(
            f"Images must be uint8 [N, H, W] or [N, H, W, 1, 3 or 4], got uint8 {list(array.shape)}{hint}."
        )
    if array.ndim == 3 and array.shape[0] in (3, 4) and channels == 3:
        raise UsageError(
            f"An array {list(array.shape)} may be one image with its channels first or {array.shape[0]} grayscale "
            "images: use x.transpose(1, 2, 0) for the former, x[..., None] for the latter."
        )
    return iter(array)


def _read_image(image: Any) -> Any:
    if isinstance(image, _ONE_IMAGE):
        return image
    if hasattr(image, "read"):
        try:
            content = image.read()
        except ValueError as error:  # closed, or open for writing
            raise UsageError(
                f"An image file cannot be read ({error}): open it with mode 'rb', and close it later."
            ) from error
        if isinstance(content, str):
            raise UsageError("An image file is open in text mode: open it with mode 'rb'.")
        if not content and hasattr(image, "tell") and image.tell():
            raise UsageError("An image file was read or written to its end: call seek(0) on it first.")
        return content
    items = image if isinstance(image, list | tuple) else ()
    if any(isinstance(item, _ONE_IMAGE) or hasattr(item, "shape") for item in items):
        raise UsageError(
            f"An item of images is a {type(image).__name__}, such as an image with its label, or a batch: give only "
            "images, one after the other, as in (image for image, label in pairs)."
        )
    return to_numpy(image, "An image") if hasattr(image, "__array__") else image


def to_class_indices(y: Sequence[Any] | NDArray[Any], classes: Sequence[str], count: int) -> NDArray[np.int64]:
    """Return the index of each label's class, int64 [N], for the `count` images of `Classifier.score`.

    Raises `DataError` for labels that do not fit.
    """
    try:
        labels = to_numpy(y, "y")
    except ValueError:  # rows of different lengths
        raise DataError("y has rows of different lengths, but score expects one label for each image.") from None
    if labels.dtype == object and not labels.ndim:
        raise DataError(f"y must be a list or an array with a label for each image, not {y!r}.")
    if labels.ndim > 1 and labels.size != len(labels):
        raise DataError(
            f"y has the shape {list(labels.shape)}, expected one label for each image: for one-hot rows, use "
            "y.argmax(1)."
        )
    if labels.size != count or not count:
        raise DataError(
            f"score expects a label for each image: got {plural(count, 'image')} and {plural(labels.size, 'label')}."
        )
    positions = {name: k for k, name in enumerate(classes)}
    numbers = {int(name): k for name, k in positions.items() if name.isdecimal()}
    return np.array([_find_class(label, positions, numbers) for label in labels.reshape(-1).tolist()], np.int64)


def _find_class(label: Any, positions: Mapping[str, int], numbers: Mapping[int, int]) -> int:
    """Return the index of the class that a label specifies, by its name, or by its number if the class is a number."""
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if isinstance(label, int) and not isinstance(label, bool):
        if label in numbers:
            return numbers[label]
        if not numbers:
            raise DataError(
                f"y holds the number {label}, but the classes are {list_some([*positions], 8)}: give their names, as "
                "in np.array(classes)[y]."
            )
    name = name_class(label)
    if name not in positions:
        raise DataError(f"y holds {label!r}, which is not a class of the model.{suggest(name, positions)}")
    return positions[name]


PREDICTION_COLUMNS = ("path", "label", "probability", "decision")  # in every table; other columns where they apply


def prediction_row(prediction: Prediction) -> dict[str, Any]:
    """Return the cells of a prediction in a table."""
    decision = prediction.decision
    row: dict[str, Any] = {
        "path": prediction.path,
        "label": prediction.label,
        "probability": prediction.probability,
        "decision": None if decision is None else decision.decision,
    }
    sets = {
        "set": None if decision is None else decision.set,
        "undecided": prediction.undecided,
        "label_set": prediction.label_set,
    }
    row |= {name: ", ".join(chosen) for name, chosen in sets.items() if chosen is not None}
    values = {"quality": prediction.quality, "expected_grade": prediction.expected_grade}
    row |= {name: value for name, value in values.items() if value is not None}
    if prediction.levels is not None:
        row |= {"node": prediction.node, "node_probability": prediction.node_probability}
    return row if prediction.error is None else row | {"error": prediction.error}  # a column only if there are errors


def explanation_row(explanation: Explanation) -> dict[str, Any]:
    """Return the cells of an explanation in a table."""
    r, check = explanation.region, explanation.faithfulness
    return {
        "path": explanation.path,
        "label": explanation.label,
        "probability": explanation.probability,
        "method": explanation.method,
        "region": None if r is None else f"({r.left}, {r.top}) to ({r.right}, {r.bottom})",
        "drop": None if check is None else check.drop,
        "random_drop": None if check is None else check.random_drop,
        **({} if explanation.pixel_fraction is None else {"pixel_fraction": explanation.pixel_fraction}),
        **({} if explanation.error is None else {"error": explanation.error}),
    }
