"""Facts of a built network: its layers and their arithmetic, its parameters, the hash of its weights."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from sightline import backend
from sightline.models import arithmetic

Sides = tuple[int, int]  # rows, columns


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer at work on one picture.

    `inputs` holds the places of the layers before it in the list of all. `output` is its shape without N, `bytes` what
    that takes in memory. `receptive_field` is how many rows and columns of the picture one value depends on, padding
    included (it can be more than the picture has), `jump` how far apart in the picture two neighbours look (0 where the
    values have been laid out anew, so that neighbours are none in the picture).
    """

    name: str
    kind: str
    inputs: tuple[int, ...]
    output: tuple[int, ...]
    output_sum: str
    window: Sides | None
    strides: Sides | None
    activation: str | None
    parameters: int
    parameters_sum: str
    multiply_adds: int
    receptive_field: Sides
    jump: Sides
    bytes: int


@dataclass(frozen=True, slots=True)
class Description:
    """A network layer by layer, each behind all that feed it; `size` is rows, columns and channels of its pictures."""

    name: str
    size: tuple[int, ...]
    classes: int
    layers: tuple[Layer, ...]

    @property
    def parameters(self) -> int:
        """The number of weights."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def multiply_adds(self) -> int:
        """The products that its convolutions and dense layers add up for one picture."""
        return sum(layer.multiply_adds for layer in self.layers)

    @property
    def bytes(self) -> int:
        """The memory of all outputs for one picture."""
        return sum(layer.bytes for layer in self.layers)

    @property
    def receptive_field(self) -> Sides:
        """What one value of the last feature maps depends on."""
        maps = [layer for layer in self.layers if layer.window is not None]
        return maps[-1].receptive_field if maps else (1, 1)

    def to_dict(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        keys = (
            *("name", "kind", "output", "output_sum", "window", "strides", "activation", "parameters"),
            *("parameters_sum", "multiply_adds", "receptive_field", "jump", "bytes"),
        )
        layers = [
            {key: getattr(layer, key) for key in keys} | {"inputs": [self.layers[i].name for i in layer.inputs]}
            for layer in self.layers
        ]
        totals = ("name", "size", "classes", "parameters", "multiply_adds", "receptive_field", "bytes")
        return {key: getattr(self, key) for key in totals} | {"layers": layers}


def describe(model: Any, name: str) -> Description:
    """Return the arithmetic of each layer of a functional Keras model with one input, nested models laid flat."""
    walk = _Walk()
    walk.follow(model, "")
    classes = int(model.output["probabilities"].shape[-1]) if isinstance(model.output, dict) else model.output.shape[-1]
    return Description(name, tuple(model.inputs[0].shape[1:]), classes, tuple(walk.layers))


class _Walk:
    """Walks over a graph in the order of computation and collects its layers."""

    def __init__(self) -> None:
        self.layers: list[Layer] = []
        self._made_by: dict[int, int] = {}  # a tensor's id: the place of its layer
        self._kept: list[Any] = []  # so that no id is used twice
        self._counted: set[int] = set()  # ids of weights, which two layers may share

    def follow(self, model: Any, prefix: str) -> None:
        for node in _nodes(model):
            operation = node.operation
            sources = list(node.input_tensors)
            if hasattr(operation, "_nodes_by_depth") or hasattr(operation, "_functional"):
                self._made_by |= {
                    id(inner): self._made_by[id(outer)] for inner, outer in zip(operation.inputs, sources, strict=True)
                }
                self.follow(operation, f"{prefix}{operation.name}/")
                places = [self._made_by[id(tensor)] for tensor in operation.outputs]
            elif prefix and not sources:  # the input of a nested model is its caller's tensor
                continue
            else:
                places = [len(self.layers)] * len(node.outputs)
                self.layers.append(self._layer(node, prefix))
            self._made_by |= {id(tensor): place for tensor, place in zip(node.outputs, places, strict=True)}
            self._kept += node.outputs

    def _layer(self, node: Any, prefix: str) -> Layer:
        operation, output = node.operation, node.outputs[0]
        inputs = tuple(self._made_by[id(tensor)] for tensor in node.input_tensors)
        shapes = [self.layers[i].output for i in inputs]
        shape = tuple(output.shape[1:])
        if None in shape:
            shape = _sized(node, shapes)
        weights = [w for w in getattr(operation, "weights", ()) if id(w) not in self._counted]
        self._counted |= {id(w) for w in weights}
        self._kept += weights
        window = arithmetic.window(operation)
        field, jump = self._sight(arithmetic.kind(operation), window, inputs, shape)
        return Layer(
            name=prefix + operation.name,
            kind=arithmetic.kind(operation),
            inputs=inputs,
            output=shape,
            output_sum=arithmetic.output_sum(operation, shapes, shape),
            window=window.size if window else None,
            strides=window.strides if window else None,
            activation=arithmetic.activation(operation),
            parameters=sum(math.prod(w.shape) for w in weights),
            parameters_sum=arithmetic.parameters_sum(operation, weights),
            multiply_adds=arithmetic.multiply_adds(operation, shapes, shape),
            receptive_field=field,
            jump=jump,
            bytes=math.prod(shape) * np.dtype(backend.keras().backend.standardize_dtype(output.dtype)).itemsize,
        )

    def _sight(
        self, kind: str, window: arithmetic.Window | None, inputs: tuple[int, ...], output: tuple[int, ...]
    ) -> tuple[Sides, Sides]:
        """Return receptive field and jump; where branches meet, the largest field, and the jump of the largest map."""
        if not inputs:
            return (1, 1), (1, 1)
        before = [self.layers[i] for i in inputs]
        field = (max(b.receptive_field[0] for b in before), max(b.receptive_field[1] for b in before))
        areas = [math.prod(b.output[:2]) if len(b.output) == 3 else 0 for b in before]
        largest = [b for b, area in zip(before, areas, strict=True) if area == max(areas)]
        jump = (max(b.jump[0] for b in largest), max(b.jump[1] for b in largest))
        if kind == "reshape" and areas[0] and output[:2] != before[0].output[:2]:
            jump = (0, 0)
        span: Sides = (1, 1)
        if window is not None:
            span = (window.span[0], window.span[1])
        elif kind.startswith("global") or (kind == "dense" and len(before[0].output) == 1):
            span = self._apart(inputs[0])
        field = (field[0] + (span[0] - 1) * jump[0], field[1] + (span[1] - 1) * jump[1])
        return field, (jump[0] * window.strides[0], jump[1] * window.strides[1]) if window else jump

    def _apart(self, place: int) -> Sides:
        """Return the rows and columns of the maps that a vector still holds side by side, flattened."""
        layer = self.layers[place]
        while len(layer.output) != 3:
            if layer.kind == "dense" or layer.kind.startswith("global") or not layer.inputs:
                return 1, 1
            layer = self.layers[layer.inputs[0]]
        return layer.output[0], layer.output[1]


def _sized(node: Any, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    """Return the shape that a node leaves where its graph, which takes any size, does not say; `shapes` are without N.

    A layer that does not say either keeps the sides that it is given, as `EinsumDense` with an ellipsis does.
    """
    tensor = backend.keras().KerasTensor
    given = {id(t): tensor((1, *shape), t.dtype) for t, shape in zip(node.input_tensors, shapes, strict=True)}
    positional, named = node.arguments.fill_in(given)
    found = node.operation.compute_output_spec(*positional, **named)
    sides = (found[0] if isinstance(found, list | tuple) else found).shape[1:]
    return tuple(own if side is None else side for side, own in zip(sides, shapes[0], strict=True))


def _nodes(model: Any) -> list[Any]:
    """Return the nodes of a graph, each behind those that feed it, branch by branch as one would read them."""
    by_depth = getattr(model, "_functional", model)._nodes_by_depth  # noqa: SLF001  # Keras has no public walk
    nodes = [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]
    maker = {id(tensor): node for node in nodes for tensor in node.outputs}
    level: dict[int, int] = {}
    for node in nodes:
        level[id(node)] = 1 + max((level[id(maker[id(t)])] for t in node.input_tensors), default=0)
    used = {id(tensor) for node in nodes for tensor in node.input_tensors}
    ends = [node for node in nodes if not any(id(tensor) in used for tensor in node.outputs)]
    ordered: dict[int, Any] = {}
    stack = sorted(ends, key=lambda node: -level[id(node)])  # an output on the way comes before what follows it
    while stack:
        missing = [maker[id(t)] for t in stack[-1].input_tensors if id(maker[id(t)]) not in ordered]
        if missing:
            stack += reversed(missing)
        else:
            node = stack.pop()
            ordered.setdefault(id(node), node)
    return list(ordered.values())


def parameters(model: Any) -> int:
    """Return the number of weights of a Keras model, those that do not learn included, random streams not."""
    return sum(math.prod(v.shape) for v in _weights(model))


def weights_sha256(model: Any) -> str:
    """Return the SHA-256 over path, dtype, shape and little-endian bytes of each of the model's weights, in order."""
    digest = hashlib.sha256()
    for variable in _weights(model):
        value = backend.keras().ops.convert_to_numpy(variable)
        digest.update(f"{variable.path} {value.dtype.name} {value.shape}\n".encode())
        digest.update(np.ascontiguousarray(value, value.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def _weights(model: Any) -> list[Any]:
    return list(model.weights)  # Keras leaves seeds of random layers out of `weights`, but not out of `variables`
