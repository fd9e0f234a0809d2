"""Channel groups: the channels of a network that can only be pruned together.

Each channel of each layer's output is a slot. A channel-wise layer passes on the slots of its input; an addition or
a product ties the slots of both inputs, since they must be removed together; a concatenation joins them; flattening
repeats them for every position. Tied slots form a group, the unit of structured pruning. Groups that reach the pixels,
the logits, or a layer that mixes channels (layer normalization, local response normalization) are kept.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline._keras import graphs
from sightline.errors import ModelError
from sightline.models.head import LOGITS, PROBABILITIES
from sightline.models.layers import ChannelFlow, LayerType, get_layer_type, is_kernel

Slots = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LayerCall:
    """A call of a layer or operation: the Keras node, and the slots of its tensors' last axes."""

    node: Any
    inputs: tuple[Slots, ...]
    outputs: tuple[Slots, ...]

    @property
    def layer(self) -> Any:
        """The layer or operation."""
        return self.node.operation

    @property
    def layer_type(self) -> LayerType:
        """The description of the layer's type."""
        return get_layer_type(self.node.operation)

    @property
    def flow(self) -> ChannelFlow:
        """How channels flow through it."""
        inputs, outputs = ([tuple(t.shape[1:]) for t in of] for of in (self.node.input_tensors, self.node.outputs))
        return self.layer_type.get_channel_flow(self.layer, inputs, outputs)

    def weights(self) -> Iterator[tuple[Any, tuple[Slots | None, ...]]]:
        """Yield each weight with known axes, and the slots along each axis (None for neither in nor out)."""
        for weight in getattr(self.layer, "weights", ()):
            axes = self.layer_type.get_axes(weight)
            if axes is not None:
                slots = {"": None, "in": self.inputs[0], "out": self.outputs[0]}
                yield weight, tuple(slots[axis] for axis in axes)


@dataclass(frozen=True, slots=True)
class ChannelGroups:
    """The groups of a network: `group` int64 [S] maps a slot to its group, `protected` is bool [G]."""

    calls: tuple[LayerCall, ...]
    group: Slots
    protected: NDArray[np.bool_]

    @property
    def count(self) -> int:
        """The number of groups."""
        return len(self.protected)

    def check_removable(self) -> None:
        """Raise `ModelError`, naming the layers that mix channels, if no group can be removed."""
        if self.protected.all():
            mixing = [type(call.layer).__name__ for call in self.calls if call.flow == "mix"]
            raise ModelError(
                "No channels of this network can be pruned: each of them reaches the outputs or a layer that mixes "
                f"channels ({', '.join(dict.fromkeys(mixing))})."
            )

    def sum_by_group(self, slots: Slots, values: NDArray[Any]) -> NDArray[np.float64]:
        """Return, for each group, the sum of the `values` of its slots: float64 [G]."""
        return np.bincount(self.group[slots], values.astype(np.float64), self.count).astype(np.float64)

    def producers(self) -> Iterator[LayerCall]:
        """Yield the calls of layers that create new channels."""
        yield from (call for call in self.calls if call.layer_type.channels == "make")


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
        call = LayerCall(node, tuple(inputs), ())
        outputs = self.output_slots(call.flow, inputs, [t.shape[-1] for t in node.outputs])
        self.calls.append(LayerCall(node, tuple(inputs), tuple(outputs)))
        self.slots_of |= {id(t): slots for t, slots in zip(node.outputs, outputs, strict=True)}

    def output_slots(self, flow: ChannelFlow, inputs: list[Slots], widths: list[int]) -> list[Slots]:
        if flow == "keep" and (len(inputs) > 1 or len(inputs[0]) != widths[0]):
            flow = "mix"
        match flow:
            case "make":
                outputs = [self.new(widths[0])]
            case "keep":
                outputs = inputs
            case "repeat":
                outputs = [np.tile(inputs[0], widths[0] // len(inputs[0]))]
            case "tie":
                outputs = [self.merge(inputs)]
            case "join":
                outputs = [np.concatenate(inputs)]
            case "split":
                outputs = list(np.split(inputs[0], len(widths)))
                for slots in outputs[1:]:  # keeps their numbers of channels equal
                    self.tie(outputs[0], slots)
            case _:
                outputs = self.seal(inputs, widths)
        return outputs

    def seal(self, inputs: list[Slots], widths: list[int]) -> list[Slots]:
        fresh = [self.new(width) for width in widths]
        self.protect(*inputs, *fresh)
        return fresh

    def merge(self, inputs: list[Slots]) -> Slots:
        width = max(map(len, inputs))
        for other in inputs[1:]:
            if len(other) == len(inputs[0]):
                self.tie(inputs[0], other)
            else:  # one input is broadcast over the channels of the other
                self.protect(*inputs)
        return next(slots for slots in inputs if len(slots) == width)


def trace_channels(model: Any) -> ChannelGroups:
    """Return the groups of a flat functional network; raises `ModelError` if a layer with weights is used twice."""
    tracer = _Tracer()
    for tensor in model.inputs:
        tracer.slots_of[id(tensor)] = tracer.new(tensor.shape[-1])
        tracer.protect(tracer.slots_of[id(tensor)])
    calls = [node for node in graphs.list_nodes(model) if not node.is_input]
    num_calls = Counter(id(node.operation) for node in calls)
    for node in calls:
        if getattr(node.operation, "weights", None) and num_calls[id(node.operation)] > 1:
            raise ModelError(f"The layer {node.operation.name} is used more than once: it cannot be pruned.")
        tracer.trace_call(node)
    tracer.protect(tracer.slots_of[id(model.output[LOGITS])], tracer.slots_of[id(model.output[PROBABILITIES])])
    roots = np.array([tracer.find(slot) for slot in range(len(tracer.parent))])
    _, group = np.unique(roots, return_inverse=True)
    protected = np.zeros(group.max() + 1, bool)
    protected[group[sorted(tracer.protected)]] = True
    return ChannelGroups(tuple(tracer.calls), group.astype(np.int64), protected)


def count_remaining(channels: ChannelGroups, removed: NDArray[np.bool_]) -> tuple[int, int]:
    """Return the numbers of weights and of multiply-adds per image without the groups `removed` (bool [G]).

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
            if is_kernel(weight):
                products += count * count_positions(call)
    return weights, products


def count_positions(call: LayerCall) -> int:
    """Return the number of positions where a layer's kernel is multiplied.

    It is 1 for a graph that accepts any input size, such as ConvNeXt's.
    """
    return call.layer_type.count_positions(call.node.input_tensors[0].shape[1:], call.node.outputs[0].shape[1:])
