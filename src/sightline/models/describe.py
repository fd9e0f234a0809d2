"""Describe a built model: its layers and their cost, its parameter count, and the hash of its weights."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np

from sightline import backend, jsonio
from sightline._keras import graphs
from sightline.errors import ModelError, require
from sightline.models.head import PROBABILITIES
from sightline.models.layers import LayerType, Role, Window, get_layer_type, is_kernel

Sides = tuple[int, int]  # rows, columns


@dataclass(frozen=True, slots=True)
class LayerDescription:
    """A layer's shapes and cost for a single image.

    `kind` is the name of its type, `role` how a diagram shows it. `inputs` are the indices of its input layers in
    `ModelDescription.layers`. `output` is the output shape without N, `bytes` the size of the output.
    `receptive_field` is the number of image rows and columns that one output value depends on, padding included (so it
    can exceed the image); `jump` is the distance in image pixels between neighboring outputs (0 after a reshape, where
    neighbors in the output are not neighbors in the image).
    """

    name: str
    kind: str
    role: Role
    inputs: tuple[int, ...]
    output: tuple[int, ...]
    output_formula: str
    window: Sides | None
    strides: Sides | None
    activation: str | None
    parameters: int
    parameters_formula: str
    multiply_adds: int
    receptive_field: Sides
    jump: Sides
    bytes: int


@dataclass(frozen=True, slots=True, repr=False)
class ModelDescription:
    """The layers of a model and their costs.

    Attributes:
        name: The recipe, model or run.
        size: The height, width and channels of the input images.
        classes: The number of classes.
        layers: The layers in topological order.
    """

    name: str
    size: tuple[int, ...]
    classes: int
    layers: tuple[LayerDescription, ...]

    @property
    def parameters(self) -> int:
        """The number of parameters."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def multiply_adds(self) -> int:
        """The multiply-adds of all convolutions and dense layers for one image."""
        return sum(layer.multiply_adds for layer in self.layers)

    @property
    def bytes(self) -> int:
        """The memory of all layer outputs for one image."""
        return sum(layer.bytes for layer in self.layers)

    @property
    def receptive_field(self) -> Sides:
        """The receptive field of the last feature maps."""
        maps = [layer for layer in self.layers if layer.window is not None]
        return maps[-1].receptive_field if maps else (1, 1)

    def to_frame(self) -> Any:
        """Return a pandas DataFrame with a row for each layer; raises `MissingExtraError` without pandas."""
        return require("pandas", "A DataFrame").DataFrame(self.to_dict()["layers"])

    def __repr__(self) -> str:
        size = "x".join(map(str, self.size))
        return (
            f"ModelDescription({self.name!r}, {size} images, {self.classes} classes: {len(self.layers)} layers, "
            f"{self.parameters:,} parameters, {self.multiply_adds:,} multiply-adds)"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the description as JSON values."""
        keys = (
            *("name", "kind", "role", "output", "output_formula", "window", "strides", "activation", "parameters"),
            *("parameters_formula", "multiply_adds", "receptive_field", "jump", "bytes"),
        )
        layers = [
            {key: getattr(layer, key) for key in keys} | {"inputs": [self.layers[i].name for i in layer.inputs]}
            for layer in self.layers
        ]
        totals = ("name", "size", "classes", "parameters", "multiply_adds", "receptive_field", "bytes")
        return {key: getattr(self, key) for key in totals} | {"layers": layers}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str) -> ModelDescription:
        """Restore from `to_dict`; raises `ModelError`, whose message starts with `where`, for invalid values."""
        stored = jsonio.build(_StoredModel, values, where)
        index: dict[str, int] = {}
        layers = []
        for number, layer in enumerate(stored["layers"]):
            if unknown := [name for name in layer["inputs"] if name not in index]:
                raise ModelError(
                    f"{where} cannot be read: layers.{number}.inputs names {unknown[0]!r}, not an earlier layer."
                )
            inputs = tuple(index[name] for name in layer["inputs"])
            layers.append(jsonio.build(LayerDescription, {**layer, "inputs": inputs}, f"{where}: layers.{number}"))
            index[layer["name"]] = number
        return cls(stored["name"], stored["size"], stored["classes"], tuple(layers))


class _StoredLayer(TypedDict):
    """A layer with the names of its inputs; its other fields are the same as in `LayerDescription`."""

    name: str
    inputs: list[str]


class _StoredModel(TypedDict):
    """The values of `ModelDescription.to_dict` that are needed to restore it."""

    name: str
    size: tuple[int, ...]
    classes: int
    layers: list[_StoredLayer]


def describe_model(model: Any, name: str) -> ModelDescription:
    """Describe each layer of a functional Keras model with one input; nested models are flattened."""
    walker = _GraphWalker()
    walker.walk(model, "")
    classes = int(model.output[PROBABILITIES].shape[-1]) if isinstance(model.output, dict) else model.output.shape[-1]
    return ModelDescription(name, tuple(model.inputs[0].shape[1:]), classes, tuple(walker.layers))


class _GraphWalker:
    """Traverses a graph in topological order and collects its layers."""

    def __init__(self) -> None:
        self.layers: list[LayerDescription] = []
        self._layer_index: dict[int, int] = {}  # tensor id -> index of its layer
        self._kept_alive: list[Any] = []  # references to the tensors, so that no id is reused
        self._counted_weights: set[int] = set()  # weight ids: shared weights count once

    def walk(self, model: Any, prefix: str) -> None:
        for node in _sort_nodes(model):
            operation = node.operation
            input_tensors = list(node.input_tensors)
            if graphs.is_graph(operation):
                self._layer_index |= {
                    id(inner): self._layer_index[id(outer)]
                    for inner, outer in zip(operation.inputs, input_tensors, strict=True)
                }
                self.walk(operation, f"{prefix}{operation.name}/")
                indices = [self._layer_index[id(tensor)] for tensor in operation.outputs]
            elif prefix and not input_tensors:  # the input of a nested model is the caller's tensor
                continue
            else:
                indices = [len(self.layers)] * len(node.outputs)
                self.layers.append(self._describe_layer(node, prefix))
            self._layer_index |= {id(tensor): index for tensor, index in zip(node.outputs, indices, strict=True)}
            self._kept_alive += node.outputs

    def _describe_layer(self, node: Any, prefix: str) -> LayerDescription:
        operation, output = node.operation, node.outputs[0]
        inputs = tuple(self._layer_index[id(tensor)] for tensor in node.input_tensors)
        shapes = [self.layers[i].output for i in inputs]
        shape = tuple(output.shape[1:])
        if None in shape:
            shape = _infer_shape(node, shapes)
        weights = [w for w in getattr(operation, "weights", ()) if id(w) not in self._counted_weights]
        self._counted_weights |= {id(w) for w in weights}
        self._kept_alive += weights
        layer_type = get_layer_type(operation)
        window = layer_type.get_window(operation)
        field, jump = self._compute_receptive_field(layer_type, window, inputs, shape)
        return LayerDescription(
            name=prefix + operation.name,
            kind=layer_type.get_kind(operation),
            role=layer_type.get_role(operation),
            inputs=inputs,
            output=shape,
            output_formula=layer_type.format_output(operation, shapes, shape),
            window=window.size if window else None,
            strides=window.strides if window else None,
            activation=layer_type.get_activation(operation),
            parameters=sum(math.prod(w.shape) for w in weights),
            parameters_formula=_format_parameters(operation, weights),
            multiply_adds=layer_type.count_multiply_adds(operation, shapes, shape),
            receptive_field=field,
            jump=jump,
            bytes=math.prod(shape) * np.dtype(backend.keras().backend.standardize_dtype(output.dtype)).itemsize,
        )

    def _compute_receptive_field(
        self, layer_type: LayerType, window: Window | None, inputs: tuple[int, ...], output: tuple[int, ...]
    ) -> tuple[Sides, Sides]:
        """Return receptive field and jump; for merging branches, the largest field and the jump of the largest map."""
        if not inputs:
            return (1, 1), (1, 1)
        input_layers = [self.layers[i] for i in inputs]
        field = (max(b.receptive_field[0] for b in input_layers), max(b.receptive_field[1] for b in input_layers))
        areas = [math.prod(b.output[:2]) if len(b.output) == 3 else 0 for b in input_layers]
        largest = [b for b, area in zip(input_layers, areas, strict=True) if area == max(areas)]
        jump = (max(b.jump[0] for b in largest), max(b.jump[1] for b in largest))
        if layer_type.rearranges and areas[0] and output[:2] != input_layers[0].output[:2]:
            jump = (0, 0)
        span: Sides = (1, 1)
        if window is not None:
            span = (window.span[0], window.span[1])
        elif layer_type.covers_map and math.prod(output[:-1]) == 1:
            span = self._get_spatial_size(inputs[0])
        field = (field[0] + (span[0] - 1) * jump[0], field[1] + (span[1] - 1) * jump[1])
        if window is None:
            return field, jump
        if window.upsamples:  # a fraction of a pixel counts as one
            return field, (max(jump[0] // window.strides[0], 1), max(jump[1] // window.strides[1], 1))
        return field, (jump[0] * window.strides[0], jump[1] * window.strides[1])

    def _get_spatial_size(self, index: int) -> Sides:
        """Return the (rows, columns) of the maps that a vector was flattened from; (1, 1) if they were pooled."""
        layer = self.layers[index]
        while len(layer.output) != 3:
            if layer.role in ("dense", "pooling") or not layer.inputs:
                return 1, 1
            layer = self.layers[layer.inputs[0]]
        return layer.output[0], layer.output[1]


def _format_parameters(operation: Any, weights: Sequence[Any]) -> str:
    """Return the parameter count of `weights` as text, such as ``3·3·3·192 + 192 = 5,376``; "" without weights.

    A grouped convolution shows its input channels per group: ``5·5·(96/2)·256``.
    """
    shapes = [tuple(map(int, weight.shape)) for weight in weights]
    if not shapes:
        return ""
    total = f"{sum(map(math.prod, shapes)):,}"
    if len(set(shapes)) == 1 and len(shapes) > 1:
        return f"{len(shapes)}·{_format_product(shapes[0])} = {total}"
    terms = [_format_product(shape) for shape in shapes]
    groups = getattr(operation, "groups", 1) if is_kernel(weights[0]) else 1
    if groups > 1:
        *sides, each, out = shapes[0]
        terms[0] = f"{_format_product(sides)}·({each * groups}/{groups})·{out}"
    text = " + ".join(terms)
    return text if text.replace(",", "") == total.replace(",", "") else f"{text} = {total}"


def _format_product(shape: Sequence[int]) -> str:
    return "·".join(map(str, shape)) or "1"


def _infer_shape(node: Any, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    """Infer a node's output shape if the graph accepts any size; `shapes` are the input shapes without N.

    A side that the layer does not infer either is taken from the input, as for `EinsumDense` with an ellipsis.
    """
    keras_tensor = backend.keras().KerasTensor
    shaped_inputs = {
        id(t): keras_tensor((1, *shape), t.dtype) for t, shape in zip(node.input_tensors, shapes, strict=True)
    }
    positional, keyword = graphs.bind_arguments(node, shaped_inputs)
    outputs = node.operation.compute_output_spec(*positional, **keyword)
    sides = (outputs[0] if isinstance(outputs, list | tuple) else outputs).shape[1:]
    return tuple(input_side if side is None else side for side, input_side in zip(sides, shapes[0], strict=True))


def _sort_nodes(model: Any) -> list[Any]:
    """Return the nodes of a graph in topological order, branch by branch."""
    nodes = graphs.list_nodes(model)
    producer = {id(tensor): node for node in nodes for tensor in node.outputs}
    level: dict[int, int] = {}
    for node in nodes:
        level[id(node)] = 1 + max((level[id(producer[id(t)])] for t in node.input_tensors), default=0)
    used_tensors = {id(tensor) for node in nodes for tensor in node.input_tensors}
    output_nodes = [node for node in nodes if not any(id(tensor) in used_tensors for tensor in node.outputs)]
    ordered: dict[int, Any] = {}
    # an intermediate output comes before the nodes that use it
    stack = sorted(output_nodes, key=lambda node: -level[id(node)])
    while stack:
        missing = [producer[id(t)] for t in stack[-1].input_tensors if id(producer[id(t)]) not in ordered]
        if missing:
            stack += reversed(missing)
        else:
            node = stack.pop()
            ordered.setdefault(id(node), node)
    return list(ordered.values())


def count_parameters(model: Any) -> int:
    """Return the parameter count of a Keras model, including non-trainable weights but not random seed states."""
    return sum(math.prod(v.shape) for v in _weights(model))


def weights_sha256(model: Any) -> str:
    """Return the SHA-256 over the path, dtype, shape and little-endian bytes of each weight, in order."""
    digest = hashlib.sha256()
    for variable in _weights(model):
        value = backend.keras().ops.convert_to_numpy(variable)
        digest.update(f"{variable.path} {value.dtype.name} {value.shape}\n".encode())
        digest.update(np.ascontiguousarray(value, value.dtype.newbyteorder("<")).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _weights(model: Any) -> list[Any]:
    return list(model.weights)  # unlike `variables`, `weights` excludes the seeds of random layers
