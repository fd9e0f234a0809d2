"""Grad-CAM of an ONNX file in closed form: if one dense layer follows the pooling, its weights are the gradient.

These are the class activation maps of Zhou et al., 2016, arXiv:1512.04150, which Grad-CAM generalizes. They take one
evaluation of the network, without Keras or gradients, which an exported file does not have.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sightline.explain.gradcam import GradCam
from sightline.inference.runtimes.onnx import OnnxPredictor
from sightline.inference.safety.onnx_graph import parse_graph
from sightline.inference.safety.onnx_types import BFLOAT16, FLOAT, FLOAT16, Node, OnnxGraph
from sightline.models.head import DENSE_LAYER, LOGITS, TEMPERATURE_LAYER

_KERNEL, _SCALE = f"{DENSE_LAYER}:kernel", f"{TEMPERATURE_LAYER}:scale"
_POOLINGS = ("GlobalAveragePool", "GlobalMaxPool")
_OF_ROWS = ("Flatten", "Identity", "QuantizeLinear", "DequantizeLinear")  # between the pooling and the dense layer
_UNCHANGED = ("Identity", "Flatten", "Reshape", "Pad")  # between the dense layer and the logits


@dataclass(frozen=True, slots=True)
class PooledHead:
    """A head that is one dense layer on pooled feature maps.

    `maps` is the name of the feature maps, float32 [N, F, h, w], in the file. `kernel` is float32 [F, K]: how much a
    unit of each pooled feature adds to each logit; [F, 1] for two classes, the first of which has the logit 0.
    """

    maps: str
    kernel: NDArray[np.float32]
    has_max_pooling: bool

    @classmethod
    def find(cls, file: bytes) -> PooledHead | None:
        """Return the head of an ONNX file; None if it is a different head."""
        graph = parse_graph(file)
        producers = {name: node for node in graph.nodes for name in node.outputs}
        scale = _find_scale(graph, file, producers)
        dense = producers.get(DENSE_LAYER)
        kernel = _read_floats(graph, file, _KERNEL, producers)
        if scale is None or dense is None or kernel is None or not _is_plain_product(dense):
            return None
        if kernel.ndim != 2 or kernel.shape[1] not in {1, graph.outputs[LOGITS].shape[-1]}:
            return None
        pooling = _follow(dense.inputs[0], _OF_ROWS, producers)
        if pooling is None or pooling.op not in _POOLINGS:
            return None
        before = producers.get(pooling.inputs[0])
        if before is None or before.op == "MaxPool":  # VGG, where the maps before the max pooling are explained
            return None
        return cls(pooling.inputs[0], scale * kernel, pooling.op == "GlobalMaxPool")

    def compute_slopes(self, maps: NDArray[np.float32], class_index: int) -> NDArray[np.float32]:
        """Return the gradient of a class score at its maps [h, w, F], of the same shape or [1, 1, F]."""
        if self.kernel.shape[1] == 1:  # the score is the difference of both logits
            weights = self.kernel[:, 0] if class_index else -self.kernel[:, 0]
        else:
            weights = self.kernel[:, class_index]
        rows = maps.reshape(-1, maps.shape[-1])
        if not self.has_max_pooling:
            return (weights / np.float32(len(rows)))[None, None]
        slopes = np.zeros_like(rows)
        np.put_along_axis(slopes, rows.argmax(0)[None], weights[None], axis=0)
        return slopes.reshape(maps.shape)


def _is_plain_product(node: Node) -> bool:
    is_plain = node.op == "Gemm" and node.inputs[1:2] == (_KERNEL,)
    return is_plain and node.attributes.items() <= {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}.items()


def _follow(name: str, passed: tuple[str, ...], producers: Mapping[str, Node]) -> Node | None:
    """Return the node that computes the value `name`, skipping operations in `passed`."""
    node = producers.get(name)
    while node is not None and node.op in passed:
        node = producers.get(node.inputs[0])
    return node


def _find_scale(graph: OnnxGraph, file: bytes, producers: Mapping[str, Node]) -> np.float32 | None:
    """Return the factor from the dense layer's results to the logits; None if the relation is a different one."""
    node, scale = _follow(LOGITS, _UNCHANGED, producers), np.float32(1)
    if node is not None and node.op == "Mul" and node.inputs[1] == _SCALE:
        values = _read_floats(graph, file, _SCALE, producers)
        if values is None or values.size != 1:
            return None
        scale, node = values.ravel()[0], _follow(node.inputs[0], _UNCHANGED, producers)
    return scale if node is not None and DENSE_LAYER in node.outputs else None


def _read_floats(graph: OnnxGraph, file: bytes, name: str, producers: Mapping[str, Node]) -> NDArray[np.float32] | None:
    """Return a weight, which may be stored in 16 bits, as float32; None if there is none of this name."""
    cast = producers.get(name)
    weight = graph.weights.get(cast.inputs[0] if cast is not None and cast.op == "Cast" else name)
    if weight is None or weight.place is None or weight.type.element_type not in {FLOAT, FLOAT16, BFLOAT16}:
        return None
    content = file[slice(*weight.place)]
    if weight.type.element_type == BFLOAT16:  # the upper half of a float32
        values = (np.frombuffer(content, "<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        values = np.frombuffer(content, "<f4" if weight.type.element_type == FLOAT else "<f2").astype(np.float32)
    return values.reshape(weight.type.shape)


class OnnxGradCam(GradCam):
    """Grad-CAM of one ONNX file with a linear head, whose session is created with the first image.

    It does not keep alive the predictor under which it is cached.
    """

    def __init__(self, predictor: OnnxPredictor, head: PooledHead) -> None:
        self._head, self._predictor = head, weakref.ref(predictor)

    @cached_property
    def _compute_maps(self) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
        predictor = self._predictor()
        assert predictor is not None, "the one whose images these are"
        return predictor.open_value(self._head.maps)

    def compute_gradients(
        self, pixels: NDArray[np.uint8], class_indices: NDArray[np.int64], regions: NDArray[np.bool_] | None
    ) -> NDArray[np.float32]:
        """Return the maps and their gradient; see `GradCam`."""
        assert regions is None, "a model of masks has no dense layer on pooled features"
        maps = np.moveaxis(self._compute_maps(pixels), 1, -1)
        slopes = [self._head.compute_slopes(one, int(index)) for one, index in zip(maps, class_indices, strict=True)]
        return np.stack([maps, np.broadcast_to(slopes, maps.shape)], 1)
