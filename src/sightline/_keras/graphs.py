"""Traverse Keras' graphs and layers, and isolate the process-wide state that Keras uses to build models."""

from __future__ import annotations

import importlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


def list_nodes(model: Any) -> list[Any]:
    """Return the nodes (calls of layers and operations) of a functional or sequential `model`, including inputs.

    Each node comes after the nodes whose outputs it needs. Keras has no public traversal of a graph
    (``_nodes_by_depth``), and a sequential model keeps its graph in ``_functional``.
    """
    by_depth = getattr(model, "_functional", model)._nodes_by_depth
    return [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]


def is_graph(operation: Any) -> bool:
    """Return whether the operation of a node is itself a model that `list_nodes` can traverse."""
    return hasattr(operation, "_nodes_by_depth") or hasattr(operation, "_functional")


def list_layers(model: Any) -> list[Any]:
    """Return all layers of `model`, including nested ones but not itself.

    ``_flatten_layers`` is Keras' only traversal that enters nested models.
    """
    return list(model._flatten_layers(include_self=False))


def get_arguments(node: Any) -> tuple[Any, ...]:
    """Return the positional arguments (tensors, constants) of a node's call; ``node.arguments`` is undocumented."""
    return tuple(node.arguments.args)


def bind_arguments(node: Any, tensors: Mapping[int, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a node's call with its tensors replaced, by their ids: positional and keyword ones."""
    positional, keyword = node.arguments.fill_in(tensors)
    return positional, keyword


@contextmanager
def fresh_layer_names() -> Iterator[None]:
    """Restart Keras' numbering of unnamed layers, so that names do not depend on models built earlier.

    Weights are saved, restored and hashed by these names. On exit, each counter is set to the greater of its old and
    new values, so that a layer added to the model later gets an unused name.
    """
    state = _import_global_state()
    before = dict(state.get_global_attribute("object_name_uids") or {})
    state.set_global_attribute("object_name_uids", defaultdict(int))
    try:
        yield
    finally:
        counters = state.get_global_attribute("object_name_uids")
        for prefix, count in before.items():
            counters[prefix] = max(counters[prefix], count)


@contextmanager
def shapes_only() -> Iterator[None]:
    """Create variables with shapes only: VGG16 takes 0.1 s and no memory instead of half a gigabyte."""
    import keras

    state = _import_global_state()
    before = list(state.get_global_attribute("uninitialized_variables") or [])
    try:
        with keras.StatelessScope(initialize_variables=False):
            yield
    finally:  # otherwise building the next model would allocate these variables
        state.set_global_attribute("uninitialized_variables", before)


def allocate(model: Any) -> None:
    """Allocate and initialize the variables of a model that was built with `shapes_only`.

    Variables of other layers, which the model does not call, stay without values. Frozen layers can be unfrozen later.
    """
    layers = [model, *list_layers(model)]  # a model before its layers
    flags = [layer.trainable for layer in layers]
    for layer in layers:  # TensorFlow never computes gradients of variables allocated while frozen
        layer.trainable = True
    for variable in model.variables:
        variable._deferred_initialize()
    for layer, trainable in zip(layers, flags, strict=True):
        layer.trainable = trainable
        layer._post_build()  # on PyTorch, registers the parameters, which Keras postpones without values


def list_litert_operations(interpreter: Any) -> list[str]:
    """Return the name of each operation of a LiteRT interpreter, such as ``CONV_2D``; there is no public API."""
    return [operation["op_name"] for operation in interpreter._get_ops_details()]


def list_litert_sizes(interpreter: Any, name: str) -> list[tuple[int, ...] | None]:
    """Return the target size of each operation `name` in a LiteRT interpreter; None if it is computed."""
    operations = interpreter._get_ops_details()
    inputs = [details["index"] for details in interpreter.get_input_details()]
    computed = {int(index) for operation in operations for index in operation["outputs"]}.union(map(int, inputs))
    sizes = (int(operation["inputs"][1]) for operation in operations if operation["op_name"] == name)
    return [None if index in computed else tuple(interpreter.get_tensor(index).ravel().tolist()) for index in sizes]


@contextmanager
def use_dtype_policy(name: str) -> Iterator[None]:
    """Use the dtype policy `name`, such as ``"mixed_bfloat16"``, for layers built in the block."""
    import keras

    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(policy)


def _import_global_state() -> Any:
    return importlib.import_module("keras.src.backend.common.global_state")  # Keras has no public API for either
