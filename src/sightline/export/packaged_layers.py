"""The ONNX file of a pretrained backbone with its pooling, from the file of its weights, before Keras is imported.

Importing TensorFlow and building a network take two seconds, in which its features can be computed already. The file is
that of `keras_to_onnx.convert_layers`, byte by byte, so whoever has both can tell that they are the same.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from numpy.typing import NDArray

from sightline.export.keras_to_onnx import OnnxFile
from sightline.models import torch_file
from sightline.models.build import LITE_OFFSET, LITE_SCALE, NORMALIZE_LAYER
from sightline.models.entry import ModelEntry, PackagedWeights
from sightline.models.head import POOL_LAYER
from sightline.models.layers import get_layer_type
from sightline.models.layers.graph_builder import GraphBuilder


def convert_packaged_layers(entry: ModelEntry, path: Path, shape: Sequence[int]) -> bytes | None:
    """Return the file for images of `shape` (H, W, 3), with global average pooling; None for another kind of network.

    `path` is the file of the weights of `entry`. Raises `ValueError` for a damaged one.
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
    return file.finish({"out": layers.GlobalAveragePooling2D(name=POOL_LAYER)(x)})


class _Layers:
    """Stands for `keras.layers`: a layer is called with values of `graph`, and takes its weights from `arrays`."""

    def __init__(self, graph: GraphBuilder, arrays: Iterator[NDArray[Any]]) -> None:
        self._graph, self._arrays = graph, arrays

    def __getattr__(self, kind: str) -> Callable[..., Any]:
        return partial(self._make, kind)

    def _make(self, kind: str, *numbers: float, name: str, **options: Any) -> Callable[[Any], Any]:
        attributes = _DESCRIBE[kind](self._arrays, *numbers, **options)
        layer = type(kind, (SimpleNamespace,), {})(name=name, **attributes)
        return lambda x: get_layer_type(layer).convert(self._graph, layer, [x], name)


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
"""What `LayerType.convert` asks of each kind of layer."""
