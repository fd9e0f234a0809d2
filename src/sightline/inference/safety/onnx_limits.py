"""Limits on the memory and time of an ONNX graph, computed from its shapes before any runtime loads it.

A graph of a few kilobytes can require terabytes (``Concat(x, x)`` forty times) or years (products of large matrices),
and ONNX Runtime evaluates constant expressions while it loads a file. So the shape of every value is inferred here, for
a given batch size.
"""

from __future__ import annotations

import math
import os

from sightline.errors import ModelError
from sightline.inference.safety.onnx_graph import OnnxGraph, TensorType
from sightline.inference.safety.onnx_shapes import infer_outputs

LIMIT_VARIABLE = "SIGHTLINE_MODEL_LIMIT"
MAX_MEMORY = 384 << 20  # bytes of all values alive at once; VGG16 takes 206 MB for 8 images of 224x224
MAX_COST = 2e11  # multiply-adds for one image, about 10 s on two cores; VGG16 takes 1.6e10 at 224x224
MAX_NODES = 10_000
_MAX_WEIGHT_GROWTH = 4  # factor by which weights may grow when converted to float32


def check_limits(graph: OnnxGraph, batch: int) -> None:
    """Raise `ModelError` if `graph` takes too much memory for `batch` images, or too long for one.

    The environment variable ``SIGHTLINE_MODEL_LIMIT`` multiplies both limits, for large trusted models.
    """
    scale = _read_scale()
    if len(graph.nodes) > MAX_NODES * scale:
        raise ModelError(f"it has {len(graph.nodes)} operations, more than {MAX_NODES * scale:g}")
    for size in sorted({1, batch}):
        _check_values(graph, size, scale)


def _read_scale() -> float:
    text = os.environ.get(LIMIT_VARIABLE, "1")
    try:
        scale = float(text)
    except ValueError:
        scale = math.nan
    if not 0 < scale < math.inf:
        raise ModelError(f"{LIMIT_VARIABLE} is {text!r}; expected a factor for the limits, such as 4")
    return scale


def _check_values(graph: OnnxGraph, batch: int, scale: float) -> None:
    """Infer every value in file order, and sum those alive at the same time."""
    types = {name: TensorType(t.element_type, _set_batch_size(t.shape, batch)) for name, t in graph.inputs.items()}
    if set(types) & set(graph.weights):
        raise ModelError("one of its inputs is also a weight")
    weights = {name: weight.type for name, weight in graph.weights.items()}
    types |= weights
    last_use = {name: position for position, node in enumerate(graph.nodes) for name in node.inputs}
    last_use |= dict.fromkeys(graph.outputs, len(graph.nodes))
    constant_names, constant_bytes, max_constant_bytes = (
        set(weights),
        0,
        MAX_MEMORY * scale + _MAX_WEIGHT_GROWTH * sum(t.num_bytes for t in weights.values()),
    )
    live_bytes, cost = {name: types[name].num_bytes for name in graph.inputs}, 0.0
    for at, node in enumerate(graph.nodes):
        inferred = infer_outputs(graph, types, node)
        cost += inferred.cost + 1e5  # overhead of one call, a few microseconds
        size = sum(t.num_bytes for t in inferred.outputs)
        if constant_names.issuperset(filter(None, node.inputs)):
            constant_names.update(node.outputs)
            constant_bytes += size
        else:
            live_bytes |= {name: t.num_bytes for name, t in zip(node.outputs, inferred.outputs, strict=True)}
        types |= dict(zip(node.outputs, inferred.outputs, strict=True))
        if sum(live_bytes.values()) + inferred.workspace > MAX_MEMORY * scale or constant_bytes > max_constant_bytes:
            raise ModelError(
                f"its operation {node.name or node.op!r} gives {size >> 20} MB for {batch} images, so that more than "
                f"{MAX_MEMORY * scale / 2**20:.0f} MB are in use at once; for a model that you trust, "
                "raise the limit with "
                f"{LIMIT_VARIABLE}=4"
            )
        live_bytes = {name: size for name, size in live_bytes.items() if last_use.get(name, -1) > at}
    if missing := set(graph.outputs) - set(types):
        raise ModelError(f"no operation computes its output {min(missing)!r}")
    if batch == 1 and cost > MAX_COST * scale:
        raise ModelError(
            f"it takes {cost:.2g} multiply-adds for one image, more than {MAX_COST * scale:.2g}; for a model that you "
            f"trust, raise the limit with {LIMIT_VARIABLE}=4"
        )


def _set_batch_size(shape: tuple[int, ...], batch: int) -> tuple[int, ...]:
    if -1 in shape[1:] or not shape:
        raise ModelError("its input has an unknown size other than that of the batch")
    return tuple(batch if n == -1 else n for n in shape)
