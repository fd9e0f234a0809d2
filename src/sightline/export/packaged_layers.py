"""The ONNX file of a pretrained network's frozen layers, from its weights file, before Keras is imported.

Importing TensorFlow and building a network take two seconds, during which features can already be computed. The file
is identical to the result of `keras_to_onnx.convert_layers`, byte for byte, so the two can be compared.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from numpy.typing import NDArray

from sightline.export.keras_to_onnx import OnnxFile
from sightline.models import torch_file
from sightline.models.boundary import find_boundary
from sightline.models.build import LITE_OFFSET, LITE_SCALE, NORMALIZE_LAYER
from sightline.models.entry import ModelEntry, PackagedWeights
from sightline.models.head import DENSE_LAYER, POOL_LAYER
from sightline.models.layers import get_layer_type
from sightline.models.layers.graph_builder import GraphBuilder, GraphValue


@dataclass(frozen=True, slots=True)
class PackagedLayers:
    """The ONNX `file` of frozen layers, and the `shape` of the features of one image."""

    file: bytes
    shape: tuple[int, ...]


def convert_packaged_layers(
    entry: ModelEntry, path: Path, shape: Sequence[int], unfreeze: int = 0
) -> PackagedLayers | None:
    """Return the layers that stay frozen, for images of `shape` (H, W, 3); None for an unsupported kind of network.

    All but the last `unfreeze` layers of the backbone stay frozen, and with 0 also global average pooling. `path` is
    the weights file of `entry`. Raises `ValueError` if it is damaged.
    """
    weights, backbone = entry.pretrained, entry.backbone_fn
    if not isinstance(weights, PackagedWeights) or not isinstance(backbone, str) or entry.normalize != "lite":
        return None
    file = OnnxFile.start(shape, is_uint8=True)
    arrays = (array for _, arrays in torch_file.read_layers(path, weights.sha256) for array in arrays)
    layers = _Layers(file.graph, arrays)
    module, function = backbone.split(":")
    x = layers.Rescaling(LITE_SCALE, LITE_OFFSET, name=NORMALIZE_LAYER)(file.pixels)
    x = getattr(importlib.import_module(f"sightline.models.{module}"), function)(x, layers)
    frozen = [call.name for call in layers.calls[1:]]  # without the pixel normalization
    frozen = frozen[: len(frozen) - unfreeze] if unfreeze < len(frozen) else []
    pooled = layers.GlobalAveragePooling2D(name=POOL_LAYER)(x)
    head = _Call(DENSE_LAYER, has_state=True, input_tensors=[pooled], outputs=[], num_nodes=0, num_weights=0)
    boundary = find_boundary([*layers.calls, head], frozen) if frozen else None
    if boundary is None:
        return None
    return PackagedLayers(file.finish({"out": layers.cut(boundary)}), boundary.shape)


@dataclass(frozen=True, slots=True)
class _Call:
    """A call of a layer, for `find_boundary`, with the numbers of nodes and weights in the graph after it."""

    name: str
    has_state: bool
    input_tensors: list[GraphValue]
    outputs: list[GraphValue]
    num_nodes: int
    num_weights: int


class _Layers:
    """Replaces `keras.layers`: layers are called with values of `graph`, and their weights come from `arrays`."""

    def __init__(self, graph: GraphBuilder, arrays: Iterator[NDArray[Any]]) -> None:
        self._graph, self._arrays = graph, arrays
        self.calls: list[_Call] = []

    def __getattr__(self, kind: str) -> Callable[..., Any]:
        return partial(self._make, kind)

    def _make(self, kind: str, *numbers: float, name: str, **options: Any) -> Callable[[Any], GraphValue]:
        attributes = _DESCRIBE[kind](self._arrays, *numbers, **options)
        layer, graph = type(kind, (SimpleNamespace,), {})(name=name, **attributes), self._graph

        def call(x: Any) -> GraphValue:
            value = get_layer_type(layer).convert(graph, layer, [x], name)
            assert isinstance(value, GraphValue), "each of these layers has one output"
            inputs, has_state = x if isinstance(x, list) else [x], kind in _WITH_WEIGHTS
            self.calls.append(_Call(name, has_state, inputs, [value], len(graph.nodes), len(graph.weights)))
            return value

        return call

    def cut(self, value: GraphValue) -> GraphValue:
        """Remove the nodes and weights that come after `value` from the graph, and return it."""
        last = next(call for call in self.calls if call.outputs[0] is value)
        del self._graph.nodes[last.num_nodes :]
        for name in list(self._graph.weights)[last.num_weights :]:
            del self._graph.weights[name]
        return value


def _describe_convolution(
    arrays: Iterator[NDArray[Any]], size: int, *, use_bias: bool, strides: int = 1, padding: str = "valid"
) -> dict[str, Any]:
    return {
        "kernel": next(arrays), "kernel_size": (size, size), "strides": (strides, strides), "padding": padding,
        "dilation_rate": (1, 1), "groups": 1, "use_bias": use_bias, "activation": SimpleNamespace(__name__="linear"),
    }  # fmt: skip


def _describe_depthwise(arrays: Iterator[NDArray[Any]], size: int, **options: Any) -> dict[str, Any]:
    attributes = _describe_convolution(arrays, size, **options)
    return attributes | {"kernel": attributes["kernel"].transpose(0, 1, 3, 2)}  # [H, W, 1, C] in the file


def _describe_normalization(arrays: Iterator[NDArray[Any]], *, epsilon: float) -> dict[str, Any]:
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    return {"scale": True, "center": True, "epsilon": epsilon} | {name: next(arrays) for name in names}


_DESCRIBE: dict[str, Callable[..., dict[str, Any]]] = {
    "Rescaling": lambda _arrays, scale, offset: {"scale": scale, "offset": offset},
    "Conv2D": lambda arrays, _filters, size, **options: _describe_convolution(arrays, size, **options),
    "DepthwiseConv2D": _describe_depthwise,
    "BatchNormalization": _describe_normalization,
    "ReLU": lambda _arrays, limit: {"max_value": limit, "negative_slope": 0, "threshold": 0},
    "Add": lambda _arrays: {},
    "GlobalAveragePooling2D": lambda _arrays: {"keepdims": False},
}
"""The attributes that `LayerType.convert` reads, for each kind of layer."""
_WITH_WEIGHTS = frozenset({"Conv2D", "DepthwiseConv2D", "BatchNormalization"})
