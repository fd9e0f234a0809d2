"""Training stages: freeze and unfreeze layers, and compute the features of frozen layers only once."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import backend, files
from sightline.config import AugmentConfig, RunConfig, StageConfig
from sightline.data import features
from sightline.errors import OutputError, UsageError, plural
from sightline.models.build import Network
from sightline.prediction.layers import ROWS, SAMPLE, Layers, layers
from sightline.randomness import derive
from sightline.records import Progress, Samples, no_progress
from sightline.training import augment, devices

IN_MEMORY = 1 << 29  # larger features, in bytes, go to a temporary file


@dataclass(frozen=True, slots=True)
class Features:
    """The outputs of the frozen layers for both splits: float32 features in place of pixels.

    `tensor` is the tensor of the model that they are values of; `train` holds `views` rows per image, view by view.
    """

    tensor: Any
    train: Samples
    validation: Samples
    views: int


def freeze(network: Network, stage: StageConfig) -> None:
    """Make the head and the layers that the stage unfreezes trainable, and freeze the others.

    Batch normalization layers in a pretrained backbone always stay frozen.
    """
    normalization = backend.keras().layers.BatchNormalization
    frozen = _frozen(network, stage)
    for layer in network.model.layers:
        keeps = network.pretrained and layer.name in network.backbone and isinstance(layer, normalization)
        layer.trainable = layer.name not in frozen and not keeps


def _frozen(network: Network, stage: StageConfig) -> frozenset[str]:
    names = network.backbone
    if stage.thaw > len(names):
        raise UsageError(
            f"Stage {stage.name!r} unfreezes {plural(stage.thaw, 'layer')}, but the backbone has only {len(names)}."
        )
    return frozenset(() if stage.thaw < 0 else names[: len(names) - stage.thaw])


def cut(network: Network, stage: StageConfig) -> Any | None:
    """Return the last tensor before the first trainable layer through which all later layers get their input.

    None if nothing is frozen, or if a trainable layer comes before the first such tensor.
    """
    frozen = _frozen(network, stage)
    if not frozen:
        return None
    logits = backend.keras().Model(network.model.input, network.logits)
    by_depth = logits._nodes_by_depth  # noqa: SLF001  # Keras has no public traversal of the nodes of a graph
    nodes = [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]
    last_use = {id(tensor): at for at, node in enumerate(nodes) for tensor in node.input_tensors}
    live: dict[int, Any] = {}
    found = None
    for at, node in enumerate(nodes):
        operation = node.operation
        learns_or_drops = getattr(operation, "weights", None) or hasattr(operation, "seed_generator")
        if operation.name not in frozen and learns_or_drops:
            break
        live |= {id(t): t for t in node.outputs}
        live = {key: t for key, t in live.items() if last_use.get(key, -1) > at}
        if len(live) == 1:
            found = next(iter(live.values()))
    return None if found is network.model.inputs[0] else found


def group(network: Network, plan: Sequence[StageConfig], number: int) -> tuple[StageConfig, ...]:
    """Return the stages that share the features computed for stage `number` of `plan`, in order.

    These are the stage itself and its neighbors with frozen layers, starting at the first for which features can be
    extracted. Empty if stage `number` trains on pixels.
    """
    if plan[number].thaw < 0:
        return ()
    first = number
    while first and plan[first - 1].thaw >= 0:
        first -= 1
    following = tuple(takewhile(lambda stage: stage.thaw >= 0, plan[first:]))
    for skipped in range(number - first + 1):
        if cut(network, max(following[skipped:], key=lambda stage: stage.thaw)) is not None:
            return following[skipped:]
    return ()


def extract(
    network: Network,
    sharing: Sequence[StageConfig],
    train: Samples,
    validation: Samples,
    config: RunConfig,
    progress: Progress,
) -> Features | None:
    """Compute both splits' features of the layers that stay frozen in all of `sharing`; None if there are none."""
    tensor = cut(network, max(sharing, key=lambda stage: stage.thaw))
    if tensor is None:
        return None
    frozen = _layers(network.model.input, tensor, train, config)
    shape = tuple(tensor.shape[1:])
    views = max(stage.views for stage in sharing) if augment.changes(augment.unmixed(config.augment)) else 1
    done = 0
    total = len(train) * views + len(validation)

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress("features of the frozen layers", done, total)

    held_out = _run(frozen, shape, validation, 1, config, advance)
    return Features(tensor, _run(frozen, shape, train, views, config, advance), held_out, views)


def onward(
    network: Network, base: Features, stage: StageConfig, config: RunConfig, progress: Progress = no_progress
) -> Features:
    """Return the features at the freeze boundary of `stage`, computed from those of the earlier boundary of `base`."""
    tensor = cut(network, stage)
    views = min(stage.views, base.views)
    few = base.train.first(len(base.train) // base.views * views)
    if tensor is None or tensor is base.tensor:
        return Features(base.tensor, few, base.validation, views)
    between = _layers(base.tensor, tensor, few, config)
    shape = tuple(tensor.shape[1:])
    done, total = 0, len(few) + len(base.validation)

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress("features of the newly frozen layers", done, total)

    held_out = _through(between, shape, base.validation, advance)
    return Features(tensor, _through(between, shape, few, advance), held_out, views)


def _layers(start: Any, end: Any, samples: Samples, config: RunConfig) -> Layers:
    """Return the layers between two tensors as a function of rows like those of `samples`."""
    model, device = backend.keras().Model(start, end), config.device
    by_keras = partial(devices.predict_on_batch, model)
    return layers(model, samples.take(slice(0, SAMPLE)), device.engine, device.threads, by_keras)


def _through(between: Layers, shape: tuple[int, ...], samples: Samples, advance: Callable[[int], None]) -> Samples:
    out = _space((len(samples), *shape))
    for at in _slices(len(samples)):
        out[at] = between.run(samples.take(at))
        advance(at.stop - at.start)
    return _as_samples(out, samples.labels, samples.paths)


def _run(
    frozen: Layers,
    shape: tuple[int, ...],
    samples: Samples,
    views: int,
    config: RunConfig,
    advance: Callable[[int], None],
) -> Samples:
    """Return the features of `views` copies of each image, from the cache if it has them.

    Copy 0 is the original image; the others are augmented, each with the parameters of a separate epoch. Copies are not
    mixed with each other, so that each keeps its own label.
    """
    changing = augment.unmixed(config.augment) if views > 1 else None
    name = None
    if config.data.cache and frozen.made_by is not None and len(samples):
        drawn_by = (repr(changing), config.seed) if changing else ()
        name = features.key(samples, *frozen.made_by, views, *drawn_by)
        kept = features.load(name, config.device.threads or None)
        if kept is not None:
            advance(len(kept))
            return _as_samples(kept, np.tile(samples.labels, views), samples.paths * views)
    out = _space((len(samples) * views, *shape))
    changed = _augmented(samples, changing) if changing else None
    with features.begun(name, out) as (known, keep):
        for view in range(views):
            drawn = None
            if view and changing:
                drawn = augment.draw(
                    changing, len(samples), samples.pixels.shape[1:3], derive(config.seed, "views"), view
                )
            for at in _slices(len(samples)):
                start, stop = (view * len(samples) + row for row in (at.start, at.stop))
                if stop > known:
                    pixels = samples.take(at)
                    if drawn is not None and changed is not None:
                        pixels = devices.predict_on_batch(changed, [pixels, drawn[at]])
                    out[start:stop] = frozen.run(pixels)
                    keep(start, stop)
                advance(stop - start)
        if name is not None:
            features.save(name, out)
    return _as_samples(out, np.tile(samples.labels, views), samples.paths * views)


def _augmented(samples: Samples, config: AugmentConfig) -> Any:
    """Return a model that only augments."""
    pixels, drawn = _augmentable(samples.pixels.shape[1:], config)
    return backend.keras().Model([pixels, drawn], augment.apply(config, pixels, drawn))


def _space(shape: tuple[int, ...]) -> NDArray[np.float32]:
    size = 4 * math.prod(shape)
    if size <= IN_MEMORY:
        return np.empty(shape, np.float32)
    try:
        with tempfile.TemporaryFile() as file:  # unlinked; the memory map keeps it open
            files.reserve(file.fileno(), size)
            return np.memmap(file, np.float32, "r+", shape=shape)
    except OSError as error:
        raise OutputError(
            f"The features of the frozen layers need {size / 2**30:.1f} GiB in {tempfile.gettempdir()} and cannot be "
            f"written: {error.strerror or error}. Free some space, or set TMPDIR to another folder."
        ) from error


def _as_samples(out: NDArray[np.float32], labels: NDArray[np.int32], paths: tuple[str, ...]) -> Samples:
    return Samples(out, np.arange(len(out)), labels, paths)


def with_augmentation(model: Any, config: AugmentConfig) -> Any:
    """Return `model` behind augmentation: inputs (uint8 pixels [N, H, W, C], sampled parameters float32 [N, D])."""
    pixels, drawn = _augmentable(model.input.shape[1:], config)
    return backend.keras().Model([pixels, drawn], model(augment.apply(config, pixels, drawn)))


def _augmentable(shape: tuple[int, ...], config: AugmentConfig) -> tuple[Any, Any]:
    keras = backend.keras()
    return keras.Input(shape, dtype="uint8"), keras.Input((augment.columns(config),), dtype="float32")


def _slices(count: int, size: int = ROWS) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
