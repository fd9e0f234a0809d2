"""Training stages: freeze and unfreeze layers, find where the frozen layers end, and add augmentation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from sightline import backend
from sightline._keras import graphs
from sightline.config import AugmentConfig, StageConfig
from sightline.errors import UsageError, plural
from sightline.models.boundary import find_boundary
from sightline.models.build import Network
from sightline.training.augment import pipeline


def freeze_layers(network: Network, stage: StageConfig, *, freeze_batch_norm: bool = True) -> None:
    """Make the head and the layers that the stage unfreezes trainable, and freeze all others.

    With `freeze_batch_norm`, batch normalization in a pretrained backbone stays frozen, whatever the stage unfreezes.
    """
    normalization = backend.keras().layers.BatchNormalization
    frozen = _get_frozen_names(network, stage)
    for layer in network.model.layers:
        is_pretrained = network.pretrained and layer.name in network.backbone
        stays_frozen = freeze_batch_norm and is_pretrained and isinstance(layer, normalization)
        layer.trainable = layer.name not in frozen and not stays_frozen


def _get_frozen_names(network: Network, stage: StageConfig) -> frozenset[str]:
    names = network.backbone
    if stage.depth > len(names):
        raise UsageError(
            f"Stage {stage.name!r} unfreezes {plural(stage.depth, 'layer')}, but the backbone has only {len(names)}"
            f". Set its unfreeze to at most that, such as {math.ceil(len(names) / 4)}, or to -1 for all layers."
        )
    return frozenset(() if stage.depth < 0 else names[: len(names) - stage.depth])


def find_freeze_boundary(network: Network, stage: StageConfig) -> Any | None:
    """Return the last tensor before the first trainable layer that feeds all later layers.

    None if nothing is frozen, or if a trainable layer comes before the first such tensor.
    """
    frozen = _get_frozen_names(network, stage)
    if not frozen:
        return None
    logits = backend.keras().Model(network.model.input, network.logits)
    boundary = find_boundary([_GraphCall(node) for node in graphs.list_nodes(logits)], frozen)
    return None if boundary is network.model.inputs[0] else boundary


class _GraphCall:
    """A node of a Keras graph, with the interface that `find_boundary` needs."""

    def __init__(self, node: Any) -> None:
        operation = node.operation
        self.name = str(operation.name)
        self.has_state = bool(getattr(operation, "weights", None)) or hasattr(operation, "seed_generator")
        self.input_tensors, self.outputs = list(node.input_tensors), list(node.outputs)


def group_stages(network: Network, stage_configs: Sequence[StageConfig], number: int) -> tuple[StageConfig, ...]:
    """Return the stages that share the features computed for stage `number` of `stage_configs`, in order.

    These are the stage itself and its neighbors with frozen layers, starting at the first stage for which features can
    be extracted. Empty if stage `number` trains on pixels.
    """
    if stage_configs[number].depth < 0:
        return ()
    first = number
    while first and stage_configs[first - 1].depth >= 0:
        first -= 1
    following = tuple(takewhile(lambda stage: stage.depth >= 0, stage_configs[first:]))
    for skipped in range(number - first + 1):
        if find_freeze_boundary(network, max(following[skipped:], key=lambda stage: stage.depth)) is not None:
            return following[skipped:]
    return ()


def add_augmentation(model: Any, config: AugmentConfig) -> Any:
    """Return `model` after augmentation; inputs are uint8 pixels [N, H, W, C] and sampled parameters float32 [N, D]."""
    pixels, params = make_augment_inputs(model.input.shape[1:], config)
    return backend.keras().Model([pixels, params], model(pipeline.apply(config, pixels, params)))


def make_augment_inputs(shape: tuple[int, ...], config: AugmentConfig) -> tuple[Any, Any]:
    """Return the inputs of augmentation: uint8 pixels of this shape [H, W, C], and their sampled parameters."""
    keras = backend.keras()
    return keras.Input(shape, dtype="uint8"), keras.Input((pipeline.count_columns(config),), dtype="float32")
