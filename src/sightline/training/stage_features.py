"""Features of frozen layers: stages compute them once per view of an image, and train on them instead of pixels."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import backend
from sightline.callbacks import Progress
from sightline.config import RunConfig, StageConfig
from sightline.data import feature_cache
from sightline.data.batches import iterate_slices, load_ahead
from sightline.data.types import Subset
from sightline.distributed import devices
from sightline.inference import device_images
from sightline.inference.frozen_layers import (
    BATCH_SIZE,
    SAMPLE_ROWS,
    FrozenLayers,
    build_frozen_layers,
    choose_calibration,
)
from sightline.models.build import Network
from sightline.seeding import derive_seed
from sightline.training.augment import pipeline
from sightline.training.early_features import EarlyFeatures
from sightline.training.stages import find_freeze_boundary, make_augment_inputs

STREAM_ROWS = 8  # rows per call if several threads compute features
FEATURES = "features of the frozen layers"  # name of the task in progress displays
TIMED_BATCHES = 2  # batches per thread for estimating the time of a view


@dataclass(frozen=True, slots=True)
class StageFeatures:
    """The outputs of the frozen layers for both splits: float32 features in place of pixels.

    They are values of the model's `tensor`, computed by `layers`; `train` has `views` rows per image, view by view.
    """

    tensor: Any
    layers: FrozenLayers
    train: Subset
    validation: Subset
    views: int


def extract_features(
    network: Network,
    group: Sequence[StageConfig],
    train: Subset,
    validation: Subset,
    config: RunConfig,
    progress: Progress,
    on_message: Callable[[str], None] = lambda _: None,
    early: EarlyFeatures | None = None,
) -> StageFeatures | None:
    """Compute both splits' features at the layers that stay frozen in all of `group`; None if there are none.

    `on_message` receives the reason if Keras computes them instead of ONNX Runtime. Features in `early` are reused.
    """
    tensor = find_freeze_boundary(network, max(group, key=lambda stage: stage.depth))
    if tensor is None:
        return None
    frozen = _make_layers(network.model.input, tensor, train, config, on_message)
    exact = frozen.exact or frozen
    shape = tuple(tensor.shape[1:])
    shared = _find_shared_images(train, validation, config, frozen, shape)
    advance = _make_advance(progress, FEATURES, len(shared) or len(train) + len(validation))
    if len(shared):
        values = _compute_features(exact, shape, shared, config, advance)
        train_features, validation_features = replace(train, pixels=values), replace(validation, pixels=values)
    else:
        values = _compute_features(exact, shape, validation, config, advance, early)
        validation_features = replace(validation, pixels=values, rows=np.arange(len(validation)))
        values = _compute_features(frozen, shape, train, config, advance, early)
        train_features = replace(train, pixels=values, rows=np.arange(len(train)))
    return StageFeatures(tensor, frozen, train_features, validation_features, 1)


def add_views(
    base: StageFeatures,
    views: int,
    train: Subset,
    validation: Subset,
    config: RunConfig,
    progress: Progress,
) -> StageFeatures:
    """Return `base` with the features of augmented versions of each training image added: `views` in total.

    `base` is the result of `extract_features` for `train` and `validation`.
    """
    frozen, shape = base.layers, tuple(base.tensor.shape[1:])
    subset = _find_shared_images(train, validation, config, frozen, shape, views)
    if len(subset) and base.train.pixels is base.validation.pixels:
        rows, layers = train.rows, frozen.exact or frozen
        originals = replace(subset, pixels=base.train.pixels)
    else:
        subset, rows, layers = train, np.arange(len(train)), frozen
        originals = base.train.head(len(train))
    advance = _make_advance(progress, FEATURES, len(subset) * views)
    values = _compute_views(layers, shape, subset, originals, views, config, advance)
    view_rows = np.concatenate([rows + view * len(subset) for view in range(views)])
    samples = Subset(values, view_rows, np.concatenate([train.labels] * views), train.paths * views)
    return StageFeatures(base.tensor, frozen, samples, base.validation, views)


def count_cached_views(base: StageFeatures, views: int, train: Subset, validation: Subset, config: RunConfig) -> int:
    """Return the largest number of views, up to `views`, whose features are in the cache of `add_views`; else 1."""
    frozen, shape = base.layers, tuple(base.tensor.shape[1:])
    for count in range(views, 1, -1):
        subset = _find_shared_images(train, validation, config, frozen, shape, count)
        is_shared = len(subset) and base.train.pixels is base.validation.pixels
        key = _find_views_key(frozen, subset if is_shared else train, config, count)
        if key is not None and feature_cache.is_complete(key):
            return count
    return 1


def time_view(frozen: FrozenLayers, train: Subset, config: RunConfig) -> float:
    """Estimate the seconds that another view of each image and its features take, from a few batches."""
    num_streams = 1 if frozen.streams is None else frozen.streams.count
    subset = train.head(TIMED_BATCHES * num_streams * BATCH_SIZE)
    augment, seconds = _make_augmentation(subset, config)(1), 0.0
    for _ in range(2):  # Keras compiles in the first round
        started = time.perf_counter()
        for _ in _run_slices(frozen, list(iterate_slices(len(subset), BATCH_SIZE)), augment):
            pass
        seconds = time.perf_counter() - started
    return seconds / len(subset) * len(train)


def count_views(stage: StageConfig, config: RunConfig) -> int:
    """Return the number of versions of each image that the stage trains on."""
    return stage.views if pipeline.is_enabled(pipeline.without_mixing(config.augment)) else 1


def _make_advance(progress: Progress, task: str, total: int) -> Callable[[int], None]:
    """Return a function that reports that a number of further rows, of `total`, are done."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(task, done, total)

    return advance


def _find_shared_images(
    train: Subset, validation: Subset, config: RunConfig, frozen: FrozenLayers, shape: tuple[int, ...], views: int = 1
) -> Subset:
    """Return all decoded images, without labels, if several folds share their features; otherwise no images.

    A fold trains on images that another fold holds out, so only the features of all images can be reused.
    """
    is_shared = config.split.folds and config.data.cache and train.pixels is validation.pixels
    count = len(train.pixels) if is_shared else 0
    if frozen.cache_key is None or not feature_cache.has_room(4 * math.prod((count * views, *shape))):
        count = 0
    return Subset(train.pixels, np.arange(count), np.zeros(count, np.int32), ("",) * count)


def advance_features(
    network: Network,
    base: StageFeatures,
    stage: StageConfig,
    config: RunConfig,
    progress: Progress,
    on_message: Callable[[str], None],
) -> StageFeatures:
    """Return the features at the freeze boundary of `stage`, computed from `base` at an earlier boundary."""
    tensor = find_freeze_boundary(network, stage)
    views = min(stage.views, base.views)
    train_subset = base.train.head(len(base.train) // base.views * views)
    if tensor is None or tensor is base.tensor:
        return StageFeatures(base.tensor, base.layers, train_subset, base.validation, views)
    intermediate = _make_layers(base.tensor, tensor, train_subset, config, on_message)
    shape = tuple(tensor.shape[1:])
    total = len(train_subset) + len(base.validation)
    advance = _make_advance(progress, "features of the remaining frozen layers", total)
    exact = intermediate.exact or intermediate
    validation_features = _run_layers(exact, shape, base.validation, config, advance)
    train_features = _run_layers(intermediate, shape, train_subset, config, advance)
    return StageFeatures(tensor, intermediate, train_features, validation_features, views)


def _make_layers(
    start: Any, end: Any, subset: Subset, config: RunConfig, on_message: Callable[[str], None]
) -> FrozenLayers:
    """Return the layers between two tensors as a function of rows like the rows of `subset`."""
    model, device = backend.keras().Model(start, end), config.device
    by_keras = partial(devices.predict_on_batch, model)
    calibration = None if config.split.folds else choose_calibration(device.feature_runtime, subset)
    layers = build_frozen_layers(
        model, subset.take(slice(0, SAMPLE_ROWS)), device.feature_runtime, device.threads, by_keras, calibration
    )
    if layers.fallback_reason:
        on_message(f"Keras computes the features of the frozen layers, since {layers.fallback_reason}")
    return layers


def _run_layers(
    intermediate: FrozenLayers,
    shape: tuple[int, ...],
    subset: Subset,
    config: RunConfig,
    advance: Callable[[int], None],
) -> Subset:
    values = feature_cache.allocate_features((len(subset), *shape))
    for rows, features in _iterate_features(intermediate, subset, config):
        values[rows] = features
        advance(rows.stop - rows.start)
    return Subset(values, np.arange(len(values)), subset.labels, subset.paths)


def _iterate_features(
    frozen: FrozenLayers, subset: Subset, config: RunConfig, done: int = 0
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Yield the rows of each batch of `subset` and their features; skip batches if all their rows are `done`.

    If Keras computes them and the device keeps images, batches do not wait for each other.
    """
    model = frozen.keras_model
    if model is not None and len(subset) and _keeps_on_device(subset, config):
        batches = device_images.DeviceInference(model, subset).iterate(BATCH_SIZE, padded=True)
        yield from zip(iterate_slices(len(subset), BATCH_SIZE), batches, strict=True)
        return
    size = BATCH_SIZE if frozen.streams is None else min(BATCH_SIZE, max(STREAM_ROWS, frozen.streams.rows))
    slices = iterate_slices(len(subset), size)
    yield from _run_slices(frozen, [rows for rows in slices if rows.stop > done], subset.take)


def _run_slices(
    frozen: FrozenLayers, slices: Sequence[slice], take: Callable[[slice], NDArray[Any]]
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Yield each of `slices` with the features of its pixels, which `take` returns; `take` is called in this thread.

    Features are computed ahead, in as many threads as the layers have streams.
    """
    if frozen.streams is None:  # in this thread: Keras may compute them
        for rows in slices:
            yield rows, frozen.run(take(rows))
        return
    tasks = (partial(frozen.run, take(rows)) for rows in slices)
    with closing(load_ahead(tasks, frozen.streams.count, 2 * frozen.streams.count)) as features:
        yield from zip(slices, features, strict=True)


def _keeps_on_device(subset: Subset, config: RunConfig) -> bool:
    return device_images.keeps_images(config.device) and device_images.fit_on_device(subset)


def _compute_features(
    frozen: FrozenLayers,
    shape: tuple[int, ...],
    subset: Subset,
    config: RunConfig,
    advance: Callable[[int], None],
    early: EarlyFeatures | None = None,
) -> NDArray[np.float32]:
    """Return the features of each image, from the cache if possible."""

    def iterate(done: int) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        if early is not None and early.has(frozen, subset):
            return early.iterate(subset, done)
        return _iterate_features(frozen, subset, config, done)

    cache_key = _find_cache_key(frozen, subset, config, 1)
    return _collect_features(cache_key, (len(subset), *shape), iterate, config, advance)


def _compute_views(
    frozen: FrozenLayers,
    shape: tuple[int, ...],
    subset: Subset,
    originals: Subset,
    views: int,
    config: RunConfig,
    advance: Callable[[int], None],
) -> NDArray[np.float32]:
    """Return the features of `views` versions of each image, view by view, from the cache if possible.

    `originals` are the features of view 0; the other views are augmented, each with the parameters of a separate epoch.
    Images are not mixed with each other, so that each keeps its own label.
    """
    make_augment = _make_augmentation(subset, config)

    def iterate(done: int) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        for rows in iterate_slices(len(subset), BATCH_SIZE):
            if rows.stop > done:
                yield rows, originals.take(rows)
        for view in range(1, views):
            first = view * len(subset)
            remaining = [rows for rows in iterate_slices(len(subset), BATCH_SIZE) if first + rows.stop > done]
            for rows, features in _run_slices(frozen, remaining, make_augment(view)):
                yield slice(first + rows.start, first + rows.stop), features

    cache_key = _find_views_key(frozen, subset, config, views)
    return _collect_features(cache_key, (len(subset) * views, *shape), iterate, config, advance)


def _find_views_key(frozen: FrozenLayers, subset: Subset, config: RunConfig, views: int) -> str | None:
    return _find_cache_key(frozen, subset, config, views, repr(pipeline.without_mixing(config.augment)), config.seed)


def _find_cache_key(
    frozen: FrozenLayers, subset: Subset, config: RunConfig, views: int, *augment_key: str | int
) -> str | None:
    if not config.data.cache or frozen.cache_key is None or not len(subset):
        return None
    return feature_cache.feature_key(subset, *frozen.cache_key, views, *augment_key)


def _collect_features(
    cache_key: str | None,
    shape: tuple[int, ...],
    iterate: Callable[[int], Iterator[tuple[slice, NDArray[np.float32]]]],
    config: RunConfig,
    advance: Callable[[int], None],
) -> NDArray[np.float32]:
    """Return the features from the cache; `iterate` yields those after a number of cached rows, to be cached too."""
    cached = feature_cache.load_features(cache_key, config.device.threads or None) if cache_key is not None else None
    if cached is not None:
        advance(len(cached))
        return cached
    values = feature_cache.allocate_features(shape)
    with feature_cache.resumable_features(cache_key, values) as (num_done, mark_done):
        if num_done:
            advance(num_done)
        for rows, features in iterate(num_done):
            values[rows] = features
            mark_done(rows.start, rows.stop)
            advance(rows.stop - rows.start)
        if cache_key is not None:
            feature_cache.save_features(cache_key, values)
    return values


def _make_augmentation(subset: Subset, config: RunConfig) -> Callable[[int], Callable[[slice], NDArray[Any]]]:
    """Return a function that maps a view number to a function from rows of `subset` to their augmented pixels."""
    augment_config = pipeline.without_mixing(config.augment)
    inputs = make_augment_inputs(subset.pixels.shape[1:], augment_config)
    model = backend.keras().Model(list(inputs), pipeline.apply(augment_config, *inputs))

    def make_augment(view: int) -> Callable[[slice], NDArray[Any]]:
        params = pipeline.sample_params(
            augment_config, len(subset), subset.pixels.shape[1:3], derive_seed(config.seed, "views"), view
        )

        def augment(rows: slice) -> NDArray[Any]:
            pixels: NDArray[Any] = devices.predict_on_batch(model, [subset.take(rows), params[rows]])
            return pixels

        return augment

    return make_augment
