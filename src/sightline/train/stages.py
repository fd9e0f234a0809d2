"""What learns in a stage: freezing, thawing, and the features that frozen layers need compute only once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import backend
from sightline.config import AugmentConfig, StageConfig
from sightline.errors import UsageError
from sightline.models.build import Network
from sightline.records import Progress, Samples
from sightline.train import augment


@dataclass(frozen=True, slots=True)
class Learner:
    """The part of a network that learns in a stage.

    `model` gives logits float32 [N, K] from what `frozen` gives (float32 features), or from uint8 pixels where
    nothing is frozen (`frozen` is None).
    """

    model: Any
    frozen: Any | None


def learner(network: Network, stage: StageConfig) -> Learner:
    """Freeze and thaw layers as the stage says, and cut the network where frozen layers end.

    The cut is the last single tensor that all paths cross before the first layer that learns. Batch normalisation in
    a pretrained backbone keeps its statistics, thawed or not.
    """
    keras = backend.keras()
    names = network.backbone
    if stage.thaw > len(names):
        raise UsageError(f"Stage {stage.name!r} thaws {stage.thaw} layers, but the backbone has {len(names)}.")
    thawed = set(names if stage.thaw < 0 else names[len(names) - stage.thaw :])
    for layer in network.model.layers:
        fixed_statistics = network.pretrained and isinstance(layer, keras.layers.BatchNormalization)
        in_backbone = layer.name in names
        layer.trainable = not in_backbone or (layer.name in thawed and not fixed_statistics)
    inputs, logits = network.model.input, network.logits
    cut = None if stage.thaw < 0 else _cut(network.model, logits, set(names) - thawed)
    if cut is None:
        return Learner(keras.Model(inputs, logits), None)
    return Learner(keras.Model(cut, logits), keras.Model(inputs, cut))


def _cut(model: Any, logits: Any, frozen: set[str]) -> Any | None:
    """Return the last tensor that alone feeds all that follows, before the first layer that learns or drops out."""
    wanted = backend.keras().Model(model.input, logits)
    operations = [op for depth in sorted(wanted._nodes_by_depth, reverse=True) for op in wanted._nodes_by_depth[depth]]  # noqa: SLF001  # Keras has no public walk over nodes
    last_use: dict[int, int] = {}
    for at, node in enumerate(operations):
        for tensor in node.input_tensors:
            last_use[id(tensor)] = at
    last_use[id(logits)] = len(operations)
    live: dict[int, Any] = {}
    cut = None
    for at, node in enumerate(operations):
        operation = node.operation
        drops_out = operation.name not in frozen and hasattr(operation, "seed_generator")
        if getattr(operation, "trainable_variables", None) or drops_out:
            break
        live |= {id(t): t for t in node.outputs}
        live = {key: t for key, t in live.items() if last_use.get(key, -1) > at}
        if len(live) == 1:
            cut = next(iter(live.values()))
    return None if cut is None or cut is wanted.inputs[0] else cut


def features(
    frozen: Any,
    samples: Samples,
    config: AugmentConfig,
    *,
    views: int,
    seed: int,
    batch_size: int = 32,
    progress: Progress,
    task: str = "features",
) -> Samples:
    """Run the frozen layers once over a part; the result is a part of float32 features, `views` rows a picture.

    View 0 is the picture as it is; the others are augmented, each drawn as an epoch of its own.
    """
    count = len(samples)
    out: NDArray[np.float32] = np.empty((count * views, *frozen.output.shape[1:]), np.float32)
    changed = _changer(frozen, config) if views > 1 else None
    done = 0
    for view in range(views):
        drawn = augment.draw(config, count, *samples.pixels.shape[1:3], seed, -view) if view else None
        for at in _slices(count, batch_size):
            pixels = samples.take(at)
            if drawn is None or changed is None:
                found = frozen.predict_on_batch(pixels)
            else:
                found = changed.predict_on_batch([pixels, drawn[at]])
            out[view * count + at.start : view * count + at.stop] = found
            done += at.stop - at.start
            progress(task, done, count * views)
    labels, paths = np.tile(samples.labels, views), samples.paths * views
    return Samples(out, np.arange(count * views), labels, paths)  # type: ignore[arg-type]  # features in place of pixels


def _changer(model: Any, config: AugmentConfig) -> Any:
    keras = backend.keras()
    pixels = keras.Input(model.input.shape[1:], dtype="uint8")
    drawn = keras.Input((augment.COLUMNS,), dtype="float32")
    return keras.Model([pixels, drawn], model(augment.apply(config, pixels, drawn)))


def _slices(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def with_augmentation(model: Any, config: AugmentConfig) -> Any:
    """Return `model` fed with augmented pictures: inputs (uint8 pixels [N, H, W, C], drawn changes [N, 10])."""
    return _changer(model, config)
