"""Features of frozen layers that are computed in threads while Keras is imported and the network is built.

Both take two seconds of one core. The features are those of an ONNX file that needs no Keras
(`export.packaged_layers`); training takes them only if the file of the network's own frozen layers turns out to be the
same, byte by byte, so they cannot change a result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import process
from sightline.config import RunConfig
from sightline.data import feature_cache
from sightline.data.batches import iterate_slices
from sightline.data.types import Subset
from sightline.errors import ModelError
from sightline.export.packaged_layers import convert_packaged_layers
from sightline.inference.frozen_layers import BATCH_SIZE, FrozenLayers, make_cache_key, open_onnxruntime
from sightline.models.entry import ModelEntry
from sightline.tasks.protocol import find_task

ROWS = 8  # of pixels that a thread takes at a time
MAX_BYTES = 1 << 28  # of features, which are all kept in memory


class EarlyFeatures:
    """The features of some rows of `pixels` by the ONNX `file`, computed in as many threads as it has streams."""

    def __init__(
        self,
        file: bytes,
        threads: int,
        pixels: NDArray[Any],
        rows: NDArray[np.int64],
        again: Collection[int] = (),
        meanwhile: Callable[[], None] = lambda: None,
    ) -> None:
        """Features of the rows `again` are kept once they were asked for, the others not.

        `meanwhile` is called once, before someone waits for the features.
        """
        layers = open_onnxruntime(file, pixels.shape[1:], threads)
        assert layers.streams is not None
        self.file, self._layers, self._pixels = file, layers, pixels
        self._again, self._meanwhile = again, meanwhile
        self._pool = ThreadPoolExecutor(layers.streams.count, "early features")
        chunks = [rows[positions] for positions in iterate_slices(len(rows), ROWS)]
        futures = [self._pool.submit(self._compute, chunk) for chunk in chunks]
        self._places: dict[int, tuple[Future[NDArray[np.float32]], int]] = {
            int(row): (future, at)
            for chunk, future in zip(chunks, futures, strict=True)
            for at, row in enumerate(chunk)
        }

    def _compute(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return self._layers.run(self._pixels[rows])

    def has(self, layers: FrozenLayers, subset: Subset) -> bool:
        """Return whether these are the features of all images of `subset` by `layers`."""
        is_same = layers.cache_key == self._layers.cache_key and subset.pixels is self._pixels
        return is_same and all(int(row) in self._places for row in subset.rows)

    def find(self, subset: Subset) -> NDArray[np.float32] | None:
        """Return the features of the images of `subset`, float32 [n, F], once they are computed; None without them."""
        if subset.pixels is not self._pixels or any(int(row) not in self._places for row in subset.rows):
            return None
        return np.concatenate([features for _, features in self.iterate(subset)])

    def iterate(self, subset: Subset, done: int = 0) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Yield the rows of each batch of `subset` and their features, once they are computed.

        Batches of which all rows are `done` are left out.
        """
        self._meanwhile()
        self._meanwhile = lambda: None
        for rows in iterate_slices(len(subset), BATCH_SIZE):
            if rows.stop > done:
                places = [self._places[int(row)] for row in subset.rows[rows]]
                yield rows, np.stack([future.result()[at] for future, at in places])
        for row in subset.rows.tolist():
            if row not in self._again:
                self._places.pop(row, None)

    def close(self) -> None:
        """Wait for what is being computed, and compute no more."""
        self._pool.shutdown(cancel_futures=True)


@contextmanager
def computing_early(
    config: RunConfig,
    entry: ModelEntry,
    weights: Path | None,
    train: Subset,
    *others: Subset,
    meanwhile: Callable[[], None] = lambda: None,
) -> Iterator[EarlyFeatures | None]:
    """Compute the features of these images in the block, those of `others` last except for the first of them.

    None where training computes other ones, or has them kept.
    """
    features = _start(config, entry, weights, train, others, meanwhile)
    try:
        yield features
    finally:
        if features is not None:
            features.close()


def _start(
    config: RunConfig,
    entry: ModelEntry,
    weights: Path | None,
    train: Subset,
    others: Sequence[Subset],
    meanwhile: Callable[[], None],
) -> EarlyFeatures | None:
    model, device, shape = config.model, config.device, train.pixels.shape[1:]
    group = tuple(takewhile(lambda stage: stage.depth >= 0, config.train.stages))
    is_plain = not find_task(model.task).targets.are_masks and not config.split.folds and shape[-1] == 3
    has_usual_head = model.pooling in ("auto", "average") and model.normalize in ("auto", "lite")
    if weights is None or not group or not is_plain or not has_usual_head or device.feature_runtime != "onnxruntime":
        return None
    try:
        layers = convert_packaged_layers(entry, weights, shape, max(stage.depth for stage in group))
    except (ModelError, ValueError):  # reported where the network takes its weights
        return None
    if len(group) < len(config.train.stages):  # a later stage trains these layers too, which then give other outputs
        others = others[:1]
    rows = np.concatenate([subset.rows for subset in (*others[:1], train, *others[1:])])  # as they are needed
    if layers is None or process.is_memory_short() or 4 * math.prod(layers.shape) * len(rows) > MAX_BYTES:
        return None
    key = make_cache_key(layers.file, shape, device.threads)
    if config.data.cache and feature_cache.is_begun(feature_cache.feature_key(train, *key, 1)):
        return None
    unique_rows = rows[np.sort(np.unique(rows, return_index=True)[1])]
    again = {row for subset in others for row in subset.rows.tolist()}  # which the final model is evaluated on
    return EarlyFeatures(layers.file, device.threads, train.pixels, unique_rows, again, meanwhile)
