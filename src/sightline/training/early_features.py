"""Compute features of frozen layers in threads while Keras is imported and the network is built.

Importing and building take two seconds on one core. The features come from an ONNX file that needs no Keras
(`export.packaged_layers`). Training uses them only if the file of the network's own frozen layers is identical byte for
byte, so they cannot change a result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
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
from sightline.inference.frozen_layers import (
    BATCH_SIZE,
    FrozenLayers,
    choose_calibration,
    make_cache_key,
    open_int8,
    open_onnxruntime,
)
from sightline.models.entry import ModelEntry
from sightline.tasks.protocol import find_task

ROWS = 8  # images per call of a thread
MAX_BYTES = 1 << 28  # limit on the features, which all stay in memory


class EarlyFeatures:
    """The features of some rows of `pixels` from the ONNX `file`, computed in as many threads as it has streams.

    The features of training images are computed in int8 if there are images for `calibration`: see `open_int8`.
    """

    def __init__(
        self,
        file: bytes,
        threads: int,
        pixels: NDArray[Any],
        train: NDArray[np.int64],
        others: Sequence[NDArray[np.int64]],
        *,
        calibration: NDArray[np.uint8] | None,
        meanwhile: Callable[[], None],
    ) -> None:
        """Compute the first of `others`, then `train`, then the rest; only features of `others` are kept after use.

        `meanwhile` is called once, before the first wait for features.
        """
        exact = open_onnxruntime(file, pixels.shape[1:], threads)
        assert exact.streams is not None
        self.file, self._exact, self._pixels, self._meanwhile = file, exact, pixels, meanwhile
        self._pool = ThreadPoolExecutor(exact.streams.count, "early features")
        self._of_train = exact if calibration is None else open_int8(file, exact, calibration, threads)
        if calibration is not None:
            self._pool.submit(self._of_train.run, calibration[:1])  # the first run quantizes the layers
        self._again = {row for rows in others for row in rows.tolist()}
        self._places: dict[tuple[bool, int], tuple[Future[NDArray[np.float32]], int]] = {}
        for rows in (*others[:1], train, *others[1:]):  # in the order of use
            is_train = rows is train
            for positions in iterate_slices(len(rows), ROWS):
                future = self._pool.submit(self._compute, rows[positions], is_train=is_train)
                self._places |= {(is_train, row): (future, at) for at, row in enumerate(rows[positions].tolist())}

    def _compute(self, rows: NDArray[np.int64], *, is_train: bool) -> NDArray[np.float32]:
        return self._find_layers(is_train=is_train).run(self._pixels[rows])

    def _find_layers(self, *, is_train: bool) -> FrozenLayers:
        return self._of_train if is_train else self._exact

    def _find_places(self, subset: Subset) -> list[tuple[bool, int]]:
        """Return the keys of the images of `subset`; they are training images unless all of them are kept."""
        rows = subset.rows.tolist()
        is_train = not set(rows) <= self._again
        return [(is_train, row) for row in rows]

    def has(self, layers: FrozenLayers, subset: Subset) -> bool:
        """Return whether the features of all images of `subset` are computed here, with the same `layers`."""
        places = self._find_places(subset)
        if subset.pixels is not self._pixels or not set(places) <= self._places.keys():
            return False
        return not places or layers.cache_key == self._find_layers(is_train=places[0][0]).cache_key

    def find(self, subset: Subset) -> NDArray[np.float32] | None:
        """Wait for the features of the images of `subset`, and return them, float32 [n, F]; None if there are none.

        Only features that are kept can be returned.
        """
        if subset.pixels is not self._pixels or not set(subset.rows.tolist()) <= self._again:
            return None
        return np.concatenate([features for _, features in self.iterate(subset)])

    def iterate(self, subset: Subset, done: int = 0) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Yield the rows of each batch of `subset` and their features, once they are computed.

        Batches are skipped if all their rows are `done`.
        """
        self._meanwhile()
        self._meanwhile = lambda: None
        places = self._find_places(subset)
        for rows in iterate_slices(len(subset), BATCH_SIZE):
            if rows.stop > done:
                batch = [self._places[place] for place in places[rows]]
                yield rows, np.stack([future.result()[at] for future, at in batch])
        for is_train, row in places:
            if is_train:
                self._places.pop((is_train, row), None)

    def close(self) -> None:
        """Wait for running computations, and cancel the others."""
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
    """Compute the features of these images during the block: the first of `others`, then `train`, then the rest.

    Yields None if training uses other features, or already has these.
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
    runtime, engines = device.feature_runtime, ("onnxruntime", "onnxruntime-int8")
    if weights is None or not group or not is_plain or not has_usual_head or runtime not in engines:
        return None
    try:
        layers = convert_packaged_layers(entry, weights, shape, max(stage.depth for stage in group))
    except (ModelError, ValueError):  # reported when the network loads its weights
        return None
    if len(group) < len(config.train.stages):  # a later stage also trains these layers, which changes their outputs
        others = others[:1]
    count = sum(map(len, (train, *others)))
    if layers is None or process.is_memory_short() or 4 * math.prod(layers.shape) * count > MAX_BYTES:
        return None
    calibration = choose_calibration(runtime, train)
    key = make_cache_key(layers.file, shape, device.threads, calibration)
    if config.data.cache and feature_cache.is_begun(feature_cache.feature_key(train, *key, 1)):
        return None
    rows = train.rows[np.sort(np.unique(train.rows, return_index=True)[1])]
    return EarlyFeatures(
        layers.file, device.threads, train.pixels, rows, [subset.rows for subset in others],
        calibration=calibration, meanwhile=meanwhile,
    )  # fmt: skip
