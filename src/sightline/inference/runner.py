"""Run a model on any number of inputs, in batches of one size.

Evaluation, parity, prediction, explanation, validation during training and serving all cut, load and pad their batches
here, with the same rule for the size. Results are in the order of the inputs, and at most a few batches are in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from sightline import process
from sightline.callbacks import Progress, no_progress
from sightline.data.batches import Batch, iterate_batches, load_ahead
from sightline.data.types import Subset
from sightline.errors import ImageError
from sightline.inference.outages import stop_in_outage
from sightline.inference.predictor import NOT_FINITE_REASON, Outputs, Predictor, Streams, find_streams

MAX_BATCH_PIXELS = 8 * 224 * 224  # limit per batch: activations take a hundred times as much memory
SMALL_BATCH_PIXELS = 2 * 224 * 224  # the same if memory is short
MAX_BATCH_SIZE = 128
BATCHES_AHEAD = 3  # batches decoded ahead while the model runs

Item = TypeVar("Item")
Decoded = TypeVar("Decoded")


def choose_batch_size(shape: Sequence[int], *, is_memory_short: bool | None = None) -> int:
    """Return the batch size for inputs of `shape`, (H, W, C) or (F,): 8 images of 224x224, 128 of 32x32.

    On two cores, ONNX Runtime classifies 106 and 102 images/s of 224x224 with MobileNetV2 in batches of 8 and 32, but
    needs 220 and 520 MB; with `cifar10-deep`, 2,103 and 3,325 images/s of 32x32 in batches of 8 and 128. A fixed size
    of 32 is worse in both cases. If memory is short (None: see `process.is_memory_short`), the sizes are 2 and 98.
    """
    is_small = process.is_memory_short() if is_memory_short is None else is_memory_short
    pixels = SMALL_BATCH_PIXELS if is_small else MAX_BATCH_PIXELS
    return max(1, min(MAX_BATCH_SIZE, pixels // math.prod(shape[:-1])))


def choose_streams(shape: Sequence[int], threads: int) -> Streams:
    """Return the streams for inputs of `shape`, (H, W, C) or (F,), with `threads` threads (0: one per core).

    Together they process no more rows than a batch. Few rows fit in the cache of a core: 1 of 256x256, 2 of 224x224.
    """
    size, cores = choose_batch_size(shape), threads or process.count_cores()
    count = min(cores, size)
    rows = max(1, min(size // count, SMALL_BATCH_PIXELS // math.prod(shape[:-1])))
    return Streams(count, rows, max(1, cores // count))


def call_padded(function: Callable[[Any], Any], rows: NDArray[Any], size: int) -> Any:
    """Return ``function(rows)`` for at most `size` rows, padded to exactly `size` by repeating the last row.

    The function returns an array [n, ...] or `Outputs`. A compiled model is recompiled for each new batch size, which
    takes 1.2 s for MobileNetV2 on two cores: longer than a whole batch of 32.
    """
    missing = size - len(rows)
    if missing <= 0:
        return function(rows)
    padded = function(np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)]))
    if isinstance(padded, Outputs):
        return Outputs(*(array[: len(rows)] for array in padded.arrays))
    return padded[: len(rows)]


def run_subset(
    function: Callable[[Any], Any],
    samples: Subset,
    *,
    batch_size: int | None = None,
    task: str = "",
    progress: Progress = no_progress,
    streams: Streams | None = None,
) -> Any:
    """Return the results of `function` for all of `samples`, at least one: an array [N, ...] or `Outputs`.

    A background thread gathers the next batch while the model runs. With `batch_size` None, `choose_batch_size` chooses
    it. With `streams`, several threads call the function at once.
    """
    pairs = iterate_results(function, samples, batch_size=batch_size, task=task, progress=progress, streams=streams)
    results = [result for _, result in pairs]
    if isinstance(results[0], Outputs):
        return Outputs(*map(np.concatenate, zip(*(outputs.arrays for outputs in results), strict=True)))
    return np.concatenate(results)


def iterate_results(
    function: Callable[[Any], Any],
    samples: Subset,
    *,
    batch_size: int | None = None,
    task: str = "",
    progress: Progress = no_progress,
    streams: Streams | None = None,
) -> Iterator[tuple[Batch, Any]]:
    """Yield each batch of `samples`, at least one image, with its results, as `run_subset` does; keep none of them."""
    size = batch_size or (choose_batch_size(samples.pixels.shape[1:]) if streams is None else streams.rows)
    size, done = min(size, len(samples)), 0

    def run(batch: Batch) -> tuple[Batch, Any]:
        return batch, call_padded(function, batch.pixels, size)

    with ExitStack() as stack:
        batches = stack.enter_context(closing(iterate_batches(samples, size)))
        if streams is None:
            results: Iterator[tuple[Batch, Any]] = map(run, batches)
        else:
            tasks = (partial(run, batch) for batch in batches)
            results = stack.enter_context(closing(load_ahead(tasks, streams.count, streams.count)))
        for batch, result in results:
            yield batch, result
            done += len(batch.positions)
            progress(task, done, len(samples))


def predict_probabilities(
    predictor: Predictor,
    samples: Subset,
    *,
    batch_size: int | None = None,
    task: str = "evaluating",
    progress: Progress = no_progress,
) -> NDArray[np.float32]:
    """Return the probabilities of all `samples`, float32 [N, K]."""
    if not len(samples):
        return np.zeros((0, len(predictor.classes)), np.float32)
    probabilities: NDArray[np.float32] = run_subset(
        predictor.probabilities, samples, batch_size=batch_size, task=task, progress=progress
    )
    return probabilities


def predict_outputs(
    predictor: Predictor, samples: Subset, *, task: str = "evaluating", progress: Progress = no_progress
) -> Outputs:
    """Return all outputs for `samples`, at least one image."""
    outputs: Outputs = run_subset(
        predictor.outputs, samples, task=task, progress=progress, streams=find_streams(predictor)
    )
    return outputs


@dataclass(frozen=True, slots=True)
class ImageOutputs(Generic[Item, Decoded]):
    """The outputs for one image: `probabilities` and `logits` float32 [K], `features` float32 [F].

    With an `error` there are no outputs: the image could not be decoded, or the outputs are not finite. `logits` and
    `features` are None unless all outputs were requested.
    """

    item: Item
    decoded: Decoded | None = None
    probabilities: NDArray[np.float32] | None = None
    logits: NDArray[np.float32] | None = None
    features: NDArray[np.float32] | None = None
    error: str | None = None


def decode_images(
    items: Iterable[Item], decode: Callable[[Item], Decoded], threads: int, ahead: int
) -> Generator[ImageOutputs[Item, Decoded], None, None]:
    """Yield each item decoded, or the error of one that cannot be read, in order.

    `decode` runs in `threads` threads, at most `ahead` items ahead, and raises `ImageError`. If a storage delivers no
    image for some time, `DataError` is raised: see `stop_in_outage`.
    """
    tasks = (partial(_decode_or_explain, decode, item) for item in items)
    with closing(load_ahead(tasks, threads, ahead)) as images:
        yield from stop_in_outage(images, lambda image: (str(getattr(image.item, "path", image.item)), image.error))


def predict_images(
    predictor: Predictor,
    items: Iterable[Item],
    decode: Callable[[Item], Decoded],
    get_pixels: Callable[[Decoded], NDArray[np.uint8]],
    *,
    all_outputs: bool = False,
    batch_size: int | None = None,
    threads: int | None = None,
) -> Generator[list[ImageOutputs[Item, Decoded]], None, None]:
    """Yield the outputs for `items` in batches, in order.

    Every call of the model has as many rows as the first batch, or `batch_size` if given; a model with `Streams` is
    called in one thread per stream.

    `decode` runs in `threads` threads (default: one per core), at most `BATCHES_AHEAD` batches ahead; see
    `decode_images`. `get_pixels` returns the uint8 pixels [H, W, C] of a decoded image.
    """
    size = batch_size or choose_batch_size(predictor.preprocess.shape)
    streams = find_streams(predictor)
    with closing(decode_images(items, decode, threads or process.count_cores(), BATCHES_AHEAD * size)) as decoded:

        def iterate_calls() -> Iterator[Callable[[], list[ImageOutputs[Item, Decoded]]]]:
            first_size = batch_size or 0
            while batch := list(islice(decoded, size)):
                first_size = first_size or len(batch)
                yield partial(predict_decoded, predictor, batch, get_pixels, all_outputs=all_outputs, size=first_size)

        if streams is None:
            yield from (call() for call in iterate_calls())
        else:
            with closing(load_ahead(iterate_calls(), streams.count, streams.count)) as results:
                yield from results


def _decode_or_explain(decode: Callable[[Item], Decoded], item: Item) -> ImageOutputs[Item, Decoded]:
    try:
        return ImageOutputs(item, decode(item))
    except ImageError as error:
        return ImageOutputs(item, error=str(error))


def predict_decoded(
    predictor: Predictor,
    batch: Sequence[ImageOutputs[Item, Decoded]],
    get_pixels: Callable[[Decoded], NDArray[np.uint8]],
    *,
    all_outputs: bool,
    size: int,
) -> list[ImageOutputs[Item, Decoded]]:
    """Return a batch of decoded images with their outputs; the model is called once, with `size` rows."""
    pixels = [get_pixels(image.decoded) for image in batch if image.decoded is not None]
    rows: Iterator[tuple[NDArray[np.float32], ...]] = iter(())
    if pixels and all_outputs:
        rows = zip(*call_padded(predictor.outputs, np.stack(pixels), size).arrays, strict=True)
    elif pixels:
        rows = ((row,) for row in call_padded(predictor.probabilities, np.stack(pixels), size))
    results = []
    for image in batch:
        if image.decoded is None:
            results.append(image)
            continue
        probabilities, *others = next(rows)
        if np.isfinite(probabilities).all():
            logits, features = others or (None, None)
            results.append(ImageOutputs(image.item, image.decoded, probabilities, logits, features))
        else:
            results.append(ImageOutputs(image.item, image.decoded, error=NOT_FINITE_REASON))
    return results
