"""Compute the memory and time that an ONNX graph needs from its shapes, before any runtime loads it."""

from __future__ import annotations

from collections.abc import Iterator

from sightline.errors import ModelError
from sightline.inference.safety.limits import Step, check_operation_count, check_steps
from sightline.inference.safety.onnx_shapes import infer_outputs
from sightline.inference.safety.onnx_types import OnnxGraph, TensorType


def check_limits(graph: OnnxGraph, batch: int) -> None:
    """Raise `ModelError` if `graph` needs too much memory for `batch` images, or too much time for one."""
    check_operation_count(len(graph.nodes))
    for size in sorted({1, batch}):
        _check_values(graph, size)


def _check_values(graph: OnnxGraph, batch: int) -> None:
    """Infer every value in file order."""
    types = {name: TensorType(t.element_type, _set_batch_size(t.shape, batch)) for name, t in graph.inputs.items()}
    if set(types) & set(graph.weights):
        raise ModelError("one of its inputs is also a weight")
    weights = {name: weight.type for name, weight in graph.weights.items()}
    types |= weights
    last_use = {name: position for position, node in enumerate(graph.nodes) for name in node.inputs}
    last_use |= dict.fromkeys(graph.outputs, len(graph.nodes))
    check_steps(
        _infer_steps(graph, types),
        {name: types[name].num_bytes for name in graph.inputs},
        {name: t.num_bytes for name, t in weights.items()},
        last_use,
        batch,
    )
    if missing := set(graph.outputs) - set(types):
        raise ModelError(f"no operation computes its output {min(missing)!r}")


def _infer_steps(graph: OnnxGraph, types: dict[str, TensorType]) -> Iterator[Step]:
    """Yield the steps of a graph, and add the type of each value to `types`."""
    for node in graph.nodes:
        inferred = infer_outputs(graph, types, node)
        outputs = dict(zip(node.outputs, inferred.outputs, strict=True))
        types |= outputs
        output_bytes = {name: t.num_bytes for name, t in outputs.items()}
        yield Step(
            node.name or node.op, tuple(filter(None, node.inputs)), output_bytes, inferred.cost, inferred.workspace
        )


def _set_batch_size(shape: tuple[int, ...], batch: int) -> tuple[int, ...]:
    if -1 in shape[1:] or not shape:
        raise ModelError("its input has an unknown size other than that of the batch")
    return tuple(batch if n == -1 else n for n in shape)
