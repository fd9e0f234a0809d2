"""Predict a stream of images in order; threads decode ahead while the model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sightline import process
from sightline.errors import UsageError
from sightline.inference.decisions import Interpreter, predict_class
from sightline.inference.embeddings import Embeddings
from sightline.inference.inputs import InputItem, take_first
from sightline.inference.ood import compute_scores
from sightline.inference.predictor import NOT_FINITE_REASON, Predictor
from sightline.inference.results import Prediction, Thresholds
from sightline.inference.runner import ImageOutputs, predict_images
from sightline.preprocessing import PreprocessingSpec, inspect_image, measure_image

REMOTE_THREADS = 16  # threads waiting for a network or decoding; as many as images are read ahead anyway


@dataclass(frozen=True, slots=True)
class SizedImage:
    """The preprocessed pixels of an image, and its original `width` and `height` as displayed."""

    pixels: NDArray[np.uint8]
    width: int
    height: int


DecodedItem = NDArray[np.uint8] | SizedImage


def choose_threads(items: Iterable[InputItem]) -> tuple[Iterator[InputItem], int | None]:
    """Return the items and the number of threads to read them; None, one per core, unless they wait for a network."""
    remaining = iter(items)
    first = take_first(remaining)
    is_remote = bool(first) and first[0].is_remote
    return chain(first, remaining), max(REMOTE_THREADS, process.count_cores()) if is_remote else None


def predict(
    predictor: Predictor,
    items: Iterable[InputItem],
    *,
    top: int = 5,
    batch_size: int | None = None,
    threads: int | None = None,
    thresholds: Thresholds | None = None,
    interpret: Interpreter = predict_class,
) -> Iterator[Prediction]:
    """Yield one `Prediction` for each item, in order; `error` is the reason if there is none.

    That is the case if the image cannot be read or the model returns NaN or infinity. `batch_size` None chooses one for
    the input size. With `thresholds`, each prediction has a `Decision`. `interpret` depends on the model's task.
    """
    items, chosen_threads = choose_threads(items)
    preprocess = predictor.preprocess
    decode: Callable[..., DecodedItem] = decode_sized if preprocess.resize == "pad" else decode_item
    batches = predict_images(
        predictor, items, partial(decode, preprocess), get_pixels, all_outputs=thresholds is not None,
        batch_size=batch_size, threads=threads or chosen_threads,
    )  # fmt: skip
    with closing(batches):
        for batch in batches:
            yield from make_predictions(predictor, batch, top, thresholds, interpret)


def embed(predictor: Predictor, items: Iterable[InputItem], model: str) -> Iterator[Embeddings]:
    """Yield the embeddings of all `items` in batches, in order: the features of `predictor`, with the id `model`.

    An image that cannot be read, or whose features are not finite, has a row of NaN and a reason.
    """
    items, threads = choose_threads(items)
    batches = predict_images(
        predictor, items, partial(decode_item, predictor.preprocess), get_pixels, all_outputs=True, threads=threads,
    )  # fmt: skip
    size = 0
    with closing(batches):
        for batch in batches:
            size = size or next((len(image.features) for image in batch if image.features is not None), 0)
            size = size or compute_feature_size(predictor)
            yield _make_embeddings(batch, size, model)


def compute_feature_size(predictor: Predictor) -> int:
    """Return the number of features that `predictor` computes per image."""
    return int(predictor.outputs(np.zeros((1, *predictor.preprocess.shape), np.uint8)).features.shape[1])


def _make_embeddings(batch: Sequence[ImageOutputs[InputItem, NDArray[np.uint8]]], size: int, model: str) -> Embeddings:
    vectors = np.full((len(batch), size), np.nan, np.float32)
    errors: list[str | None] = []
    for row, image in zip(vectors, batch, strict=True):
        error = image.error
        if image.features is not None and np.isfinite(image.features).all():
            row[:] = image.features
        elif error is None:
            error = NOT_FINITE_REASON
        errors.append(error)
    items = [image.item for image in batch]
    return Embeddings(vectors, tuple(i.path for i in items), tuple(i.label for i in items), tuple(errors), model)


def get_pixels(decoded: DecodedItem) -> NDArray[np.uint8]:
    """Return the pixels of a decoded image."""
    return decoded.pixels if isinstance(decoded, SizedImage) else decoded


def decode_item(preprocess: PreprocessingSpec, item: InputItem) -> NDArray[np.uint8]:
    """Read and decode an item; raises `ImageError` if that fails, `UsageError` for anything but an image."""
    content = item.read()
    try:
        return preprocess.convert(content)
    except UsageError as error:
        raise UsageError(f"Image {item.path}: {error}.") from error


def decode_sized(preprocess: PreprocessingSpec, item: InputItem) -> SizedImage:
    """Read and decode an item like `decode_item`, and return the size of the image with its pixels."""
    content = item.read()
    width, height = find_size(preprocess, content)
    return SizedImage(decode_item(preprocess, replace(item, read=lambda: content)), width, height)


def find_size(preprocess: PreprocessingSpec, content: Any) -> tuple[int, int]:
    """Return the width and height of an image, encoded or as pixels, as displayed; raises `ImageError`."""
    if isinstance(content, bytes | bytearray | memoryview):
        header = inspect_image(content, preprocess.page, preprocess.max_megapixels)
        return header.width, header.height
    if isinstance(content, Image.Image):
        return measure_image(content)
    height, width = (*np.shape(content), 1, 1)[:2]  # decoding refuses anything but an image
    return width, height


def make_predictions(
    predictor: Predictor,
    batch: Sequence[ImageOutputs[InputItem, Any]],
    top: int,
    thresholds: Thresholds | None,
    interpret: Interpreter,
) -> Iterator[Prediction]:
    """Yield the prediction for each image of a batch: the result of `interpret`, or why there is none."""
    for image in batch:
        path, row, decoded = image.item.path, image.probabilities, image.decoded
        if row is not None and row.ndim == 3 and isinstance(decoded, SizedImage):  # per pixel
            row = predictor.preprocess.cut_padding(row, decoded.width, decoded.height)
        if row is None:
            yield Prediction(path, error=image.error)
        else:
            score = None
            if thresholds is not None and image.logits is not None and image.features is not None and row.ndim == 1:
                score = float(compute_scores(thresholds, image.logits[None], image.features[None])[0])
            yield interpret(path, row, predictor.classes, top=top, thresholds=thresholds, ood_score=score)
