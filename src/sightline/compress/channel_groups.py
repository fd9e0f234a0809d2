"""Channel groups: the channels of a network that can only be pruned together.

Each channel of each layer's output is a slot. A channel-wise layer passes the slots of its input on; an addition or
a product ties the slots of both inputs, since they must be removed together; a concatenation joins them; flattening
repeats them for every position. Tied slots form a group: the unit of structured pruning. Groups that reach the pixels,
the logits, or a layer that mixes channels (layer normalization, local response normalization) are kept.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline._keras import graphs
from sightline.errors import ModelError

Slots = NDArray[np.int64]

AXES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "Conv2D": {"kernel": ("", "", "in", "out"), "bias": ("out",)},
    "Dense": {"kernel": ("in", "out"), "bias": ("out",)},
    "DepthwiseConv2D": {"kernel": ("", "", "out", ""), "bias": ("out",)},
    "SeparableConv2D": {
        "depthwise_kernel": ("", "", "in", ""), "pointwise_kernel": ("", "", "in", "out"), "bias": ("out",),
    },
    "BatchNormalization": dict.fromkeys(("gamma", "beta", "moving_mean", "moving_variance"), ("out",)),
}  # fmt: skip
"""What each axis of each weight is: input channels, output channels, or neither."""

_CHANNELWISE = {
    "Activation", "AveragePooling2D", "BatchNormalization", "Cropping2D", "DepthwiseConv2D", "Dropout",
    "GaussianNoise", "GlobalAveragePooling2D", "GlobalMaxPooling2D", "Identity", "MaxPooling2D", "Power", "ReLU",
    "SpatialDropout2D", "ZeroPadding2D",
}  # fmt: skip
_CHANNEL_SOURCES = {"Conv2D", "Dense", "SeparableConv2D"}


@dataclass(frozen=True, slots=True)
class LayerCall:
    """One call of a layer or an operation: the Keras node, and the slots of its tensors' last axes."""

    node: Any
    inputs: tuple[Slots, ...]
    outputs: tuple[Slots, ...]

    @property
    def layer(self) -> Any:
        """The layer or operation."""
        return self.node.operation

    @property
    def class_name(self) -> str:
        """The name of its class."""
        return type(self.node.operation).__name__

    def weights(self) -> Iterator[tuple[Any, tuple[Slots | None, ...]]]:
        """Yield each weight whose axes are known, with the slots along each axis (None: neither in nor out)."""
        axes = AXES.get(self.class_name, {})
        for weight in getattr(self.layer, "weights", ()):
            if weight.name in axes:
                slots = {"": None, "in": self.inputs[0], "out": self.outputs[0]}
                yield weight, tuple(slots[axis] for axis in axes[weight.name])


@dataclass(frozen=True, slots=True)
class ChannelGroups:
    """The groups of a network: `group` int64 [S] maps a slot to its group, `protected` is bool [G]."""

    calls: tuple[LayerCall, ...]
    group: Slots
    protected: NDArray[np.bool_]

    @property
    def count(self) -> int:
        """How many groups there are."""
        return len(self.protected)

    def sum_by_group(self, slots: Slots, values: NDArray[Any]) -> NDArray[np.float64]:
        """Return, for each group, the sum of the `values` of its slots: float64 [G]."""
        return np.bincount(self.group[slots], values.astype(np.float64), self.count).astype(np.float64)

    def producers(self) -> Iterator[LayerCall]:
        """Yield the calls of layers whose output channels are new ones."""
        yield from (call for call in self.calls if call.class_name in _CHANNEL_SOURCES)


class _Tracer:
    def __init__(self) -> None:
        self.parent: list[int] = []
        self.protected: set[int] = set()
        self.slots_of: dict[int, Slots] = {}
        self.calls: list[LayerCall] = []

    def new(self, count: int) -> Slots:
        start = len(self.parent)
        self.parent += range(start, start + count)
        return np.arange(start, start + count)

    def find(self, slot: int) -> int:
        while self.parent[slot] != slot:
            self.parent[slot] = self.parent[self.parent[slot]]
            slot = self.parent[slot]
        return slot

    def tie(self, first: Slots, second: Slots) -> None:
        for a, b in zip(first.tolist(), second.tolist(), strict=True):
            self.parent[self.find(b)] = self.find(a)

    def protect(self, *slots: Slots) -> None:
        for each in slots:
            self.protected.update(each.tolist())

    def trace_call(self, node: Any) -> None:
        inputs = [self.slots_of[id(t)] for t in node.input_tensors]
        outputs = self.output_slots(node, inputs)
        self.calls.append(LayerCall(node, tuple(inputs), tuple(outputs)))
        self.slots_of |= {id(t): slots for t, slots in zip(node.outputs, outputs, strict=True)}

    def output_slots(self, node: Any, inputs: list[Slots]) -> list[Slots]:
        kind, shapes = type(node.operation).__name__, [tuple(t.shape[1:]) for t in node.outputs]
        width = shapes[0][-1]
        if kind in _CHANNEL_SOURCES and getattr(node.operation, "groups", 1) == 1 and _multiplier(node.operation) == 1:
            return [self.new(width)]
        if _is_channelwise(node, inputs[0]):
            return [inputs[0] if kind != "Flatten" else np.tile(inputs[0], width // len(inputs[0]))]
        if kind in {"Add", "Multiply"}:
            return [self.merge(inputs)]
        if kind == "Concatenate" and node.operation.axis in (-1, len(shapes[0])):
            return [np.concatenate(inputs)]
        if kind == "Split" and all(shape == shapes[0] for shape in shapes) and width * len(shapes) == len(inputs[0]):
            slots = np.split(inputs[0], len(shapes))
            for slot in slots[1:]:  # so that all keep the same number of channels
                self.tie(slots[0], slot)
            return list(slots)
        return self.seal(inputs, [shape[-1] for shape in shapes])

    def seal(self, inputs: list[Slots], widths: list[int]) -> list[Slots]:
        fresh = [self.new(width) for width in widths]
        self.protect(*inputs, *fresh)
        return fresh

    def merge(self, inputs: list[Slots]) -> Slots:
        width = max(map(len, inputs))
        for other in inputs[1:]:
            if len(other) == len(inputs[0]):
                self.tie(inputs[0], other)
            else:  # one of them is broadcast over the channels of the other
                self.protect(*inputs)
        return next(slots for slots in inputs if len(slots) == width)


def _is_channelwise(node: Any, slots: Slots) -> bool:
    """Return whether each output channel depends on a single channel of the only input."""
    kind, width = type(node.operation).__name__, node.outputs[0].shape[-1]
    if kind == "Rescaling":
        return bool(np.ndim(node.operation.scale) == np.ndim(node.operation.offset) == 0)
    if kind == "Reshape":
        return bool(math.prod(node.input_tensors[0].shape[1:]) == width == len(slots))
    return kind == "Flatten" or (kind in _CHANNELWISE and len(node.input_tensors) == 1 and len(slots) == width)


def _multiplier(layer: Any) -> int:
    return int(getattr(layer, "depth_multiplier", 1))


def trace_channels(model: Any) -> ChannelGroups:
    """Return the groups of a flat functional network; raises `ModelError` where a layer with weights is used twice."""
    tracer = _Tracer()
    for tensor in model.inputs:
        tracer.slots_of[id(tensor)] = tracer.new(tensor.shape[-1])
        tracer.protect(tracer.slots_of[id(tensor)])
    calls = list_nodes(model)
    num_calls = Counter(id(node.operation) for node in calls)
    for node in calls:
        if getattr(node.operation, "weights", None) and num_calls[id(node.operation)] > 1:
            raise ModelError(f"The layer {node.operation.name} is used more than once: it cannot be pruned.")
        tracer.trace_call(node)
    tracer.protect(tracer.slots_of[id(model.output["logits"])], tracer.slots_of[id(model.output["probabilities"])])
    roots = np.array([tracer.find(slot) for slot in range(len(tracer.parent))])
    _, group = np.unique(roots, return_inverse=True)
    protected = np.zeros(group.max() + 1, bool)
    protected[group[sorted(tracer.protected)]] = True
    return ChannelGroups(tuple(tracer.calls), group.astype(np.int64), protected)


def list_nodes(model: Any) -> list[Any]:
    """Return the calls of layers and operations of a functional network, each after those that it needs."""
    return [node for node in graphs.list_nodes(model) if not node.is_input]


def count_remaining(channels: ChannelGroups, removed: NDArray[np.bool_]) -> tuple[int, int]:
    """Return the number of weights and of multiply-adds per image without the groups `removed` (bool [G]).

    Layers whose weights belong to no group are not counted.
    """
    weights = products = 0
    for call in channels.calls:
        for weight, axes in call.weights():
            lengths = [
                size if slots is None else int((~removed[channels.group[slots]]).sum())
                for size, slots in zip(weight.shape, axes, strict=True)
            ]
            count = math.prod(lengths)
            weights += count
            if len(axes) > 1:
                products += count * count_positions(call)
    return weights, products


def count_positions(call: LayerCall) -> int:
    """Return the number of positions at which a layer's kernel is applied: rows times columns of its output.

    It is 1 for a graph that takes any input size, such as ConvNeXt's.
    """
    shape: Sequence[int | None] = call.node.outputs[0].shape[1:-1]
    return math.prod(side or 1 for side in shape)
