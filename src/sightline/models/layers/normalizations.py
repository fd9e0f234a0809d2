"""Normalization, dropout, and layers that scale each channel."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any, ClassVar

import numpy as np

from sightline.errors import ModelError
from sightline.models.layers.graph_builder import GraphBuilder, GraphValue, to_array
from sightline.models.layers.layer_type import ChannelFlow, LayerType, Shape, register_layer


def _read_scale(layer: Any, count: int) -> tuple[Any, Any]:
    """Return scale and offset of a normalization layer: float32 [C] each."""
    scale = to_array(layer.gamma) if layer.scale else np.ones(count, np.float32)
    return scale, to_array(layer.beta) if layer.center else np.zeros(count, np.float32)


@register_layer("BatchNormalization")
class BatchNormalization(LayerType):
    """Each channel is normalized by its statistics over the training images."""

    role = "normalization"
    channels = "keep"
    axes: ClassVar = dict.fromkeys(("gamma", "beta", "moving_mean", "moving_variance"), ("out",))

    def convert(self, graph: GraphBuilder, layer: Any, arguments: Sequence[Any], name: str) -> GraphValue:
        """Add a BatchNormalization."""
        value: GraphValue = arguments[0]
        scale, offset = _read_scale(layer, value.shape[-1])
        statistics = {"scale": scale, "offset": offset}
        statistics |= {"mean": to_array(layer.moving_mean), "variance": to_array(layer.moving_variance)}
        inputs = [graph.add_weight(f"{name}:{what}", numbers) for what, numbers in statistics.items()]
        names = [graph.get_name(value, "nchw"), *inputs]
        output = graph.add_node("BatchNormalization", names, name, epsilon=layer.epsilon)
        return graph.derive(value, output, layout="nchw")


@register_layer("LayerNormalization")
class LayerNormalization(LayerType):
    """The channels of each position are normalized by their own statistics."""

    role = "normalization"

    def convert(self, graph: GraphBuilder, layer: Any, arguments: Sequence[Any], name: str) -> GraphValue:
        """Add a LayerNormalization."""
        value: GraphValue = arguments[0]
        if layer.axis not in (-1, [-1], [len(value.shape)]) or getattr(layer, "rms_scaling", False):
            raise ModelError(
                f"{layer.name}: layer normalization over axes other than the last cannot be exported to ONNX."
            )
        scale, offset = _read_scale(layer, value.shape[-1])
        inputs = [graph.add_weight(f"{name}:scale", scale), graph.add_weight(f"{name}:offset", offset)]
        names = [graph.get_name(value), *inputs]
        output = graph.add_node("LayerNormalization", names, name, epsilon=layer.epsilon, axis=-1)
        return graph.derive(value, output, layout="nhwc")


@register_layer("GroupNormalization")
class GroupNormalization(LayerType):
    """Groups of channels are normalized by their statistics over all positions of an image."""

    role = "normalization"

    def convert(self, graph: GraphBuilder, layer: Any, arguments: Sequence[Any], name: str) -> GraphValue:
        """Add an InstanceNormalization of the groups, then the scale and offset of each channel."""
        value: GraphValue = arguments[0]
        if layer.axis not in (-1, len(value.shape)) or len(value.shape) != 3:
            raise ModelError(
                f"{layer.name}: group normalization of axes other than the channels of feature maps cannot be exported "
                "to ONNX."
            )
        height, width, channels = value.shape
        groups = channels if layer.groups == -1 else int(layer.groups)
        neutral = [
            graph.add_weight(f"{name}:{what}", np.full(groups, what == "one", np.float32)) for what in ("one", "zero")
        ]
        output = graph.get_name(value, "nchw")
        shape = graph.add_weight(f"{name}:groups", np.array([0, groups, -1], np.int64))
        output = graph.add_node("Reshape", [output, shape], f"{name}:grouped")
        output = graph.add_node(
            "InstanceNormalization", [output, *neutral], f"{name}:normalized", epsilon=layer.epsilon
        )
        shape = graph.add_weight(f"{name}:shape", np.array([0, channels, height, width], np.int64))
        output = graph.add_node("Reshape", [output, shape], f"{name}:maps")
        scale, offset = _read_scale(layer, channels)
        for op, what, numbers in (("Mul", "scale", scale), ("Add", "offset", offset)):
            weight = graph.add_weight(f"{name}:{what}", numbers.reshape(-1, 1, 1))
            output = graph.add_node(op, [output, weight], f"{name}:scaled" if what == "scale" else name)
        return graph.derive(value, output, layout="nchw")


@register_layer("Rescaling")
class Rescaling(LayerType):
    """x * scale + offset, where each is a number or one number per channel."""

    def get_channel_flow(self, layer: Any, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> ChannelFlow:
        """Return "keep" for plain numbers; numbers per channel would have to be pruned too."""
        return "keep" if np.ndim(layer.scale) == np.ndim(layer.offset) == 0 else "mix"

    def convert(self, graph: GraphBuilder, layer: Any, arguments: Sequence[Any], name: str) -> GraphValue:
        """Add a Mul and an Add, unless they change nothing."""
        value: GraphValue = arguments[0]
        scale, offset = np.asarray(layer.scale, np.float32), np.asarray(layer.offset, np.float32)
        for op, what, number, neutral in (("Mul", "scale", scale, 1), ("Add", "offset", offset, 0)):
            if not np.all(number == neutral):
                constant = graph.add_weight(f"{name}:{what}", graph.align_channels(number, value))
                value = graph.apply(op, value, f"{name}:{what}d" if what == "scale" else name, constant)
        return value


@register_layer("EinsumDense")
class EinsumDense(LayerType):
    """A product by Einstein summation; the only kind in our models multiplies each channel by its own number."""

    def convert(self, graph: GraphBuilder, layer: Any, arguments: Sequence[Any], name: str) -> GraphValue:
        """Add a Mul."""
        value: GraphValue = arguments[0]
        if layer.equation != "nhwc,c->nhwc":
            raise ModelError(f"{layer.name}: the einsum equation {layer.equation!r} cannot be exported to ONNX.")
        scale = graph.add_weight(f"{name}:scale", graph.align_channels(to_array(layer.kernel), value))
        return graph.apply("Mul", value, name, scale)


class _TrainingOnly(LayerType):
    channels = "keep"

    def convert(self, graph: GraphBuilder, layer: Any, arguments: Sequence[Any], name: str) -> GraphValue:
        """Add nothing: outside training it is the identity."""
        value: GraphValue = arguments[0]
        return value


@register_layer("Dropout", "SpatialDropout2D", "GaussianDropout", "AlphaDropout")
class Dropout(_TrainingOnly):
    """Values or channels are dropped in training."""

    role = "dropout"

    def set_channels(self, config: MutableMapping[str, Any], count: int, old_count: int) -> None:
        """Lower the rate: a narrower layer needs less dropout (Han et al., 2015, arXiv:1506.02626)."""
        config["rate"] *= count / old_count


@register_layer("ActivityRegularization", "GaussianNoise", "Identity")
class Identity(_TrainingOnly):
    """A layer that changes nothing outside training."""
