"""A Keras model as two files without code: its weights in safetensors, and its layers in Keras' JSON.

Each weight is named by its path in Keras, such as ``conv1/kernel``, and has Keras' layout: convolutions are
[height, width, in, out], dense layers [in, out]. Every weight of every layer is included, even moving averages.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sightline import backend, jsonio
from sightline._keras.graphs import allocate, list_layers, shapes_only
from sightline._keras.loading import explain_load_error
from sightline._keras.process_state import seed_new_layers
from sightline.errors import ModelError, first_line, require
from sightline.models.head import PROBABILITIES
from sightline.models.keras_file import drop_keys

WEIGHTS_FILE, LAYERS_FILE = "model.safetensors", "layers.json"
MAX_LAYERS_BYTES = 64 << 20
PURPOSE = "The format safetensors"


def encode_model(model: Any) -> dict[str, bytes]:
    """Return the contents of the two files by name; raises `ModelError` if two weights have the same path."""
    to_numpy = backend.keras().ops.convert_to_numpy
    weights = {path: np.array(to_numpy(variable), order="C") for path, variable in _map_weights(model).items()}
    content = require("safetensors.numpy", PURPOSE).save(weights, metadata={"format": "keras"})
    return {WEIGHTS_FILE: content, LAYERS_FILE: model.to_json().encode()}


def decode_model(weights: bytes, layers: bytes) -> Any:
    """Return the Keras model from the two files; raises `ModelError` if they do not match.

    Only Keras' own layers are built, in safe mode.
    """
    if len(layers) > MAX_LAYERS_BYTES:
        raise ModelError(f"{LAYERS_FILE} has more than {MAX_LAYERS_BYTES >> 20} MiB")
    safetensors = require("safetensors.numpy", PURPOSE)
    try:
        arrays = safetensors.load(weights)
    except Exception as error:  # safetensors has one error type for all problems
        raise ModelError(f"{WEIGHTS_FILE} cannot be read: {first_line(error)}") from error
    try:
        config = drop_keys(jsonio.loads(layers), "compile_config")
        keras = backend.keras()  # on the chosen backend; `shapes_only` might import it on another
        with shapes_only(), seed_new_layers(0):  # no memory is allocated before the sizes are compared
            model: Any = keras.saving.deserialize_keras_object(config, safe_mode=True)
        model.output[PROBABILITIES].shape[-1]
    except Exception as error:
        raise ModelError(f"{LAYERS_FILE} cannot be read: {explain_load_error(error)}") from error
    shapes = {path: tuple(variable.shape) for path, variable in _map_weights(model).items()}
    if differing := sorted(shapes.keys() ^ arrays.keys()):
        raise ModelError(f"the weight {differing[0]!r} is only in one of {WEIGHTS_FILE} and {LAYERS_FILE}")
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise ModelError(f"the weight {name!r} has shape {arrays[name].shape}, but {shape} in {LAYERS_FILE}")
    allocate(model)
    for variable in model.weights:
        backend.assign(variable, arrays[variable.path])
    for layer in list_layers(model):
        if isinstance(layer, backend.keras().layers.Normalization):
            layer.finalize_state()  # it uses a mean and variance derived from its weights when it was built
    return model


def _map_weights(model: Any) -> dict[str, Any]:
    """Return the weights by path; raises `ModelError` if two have the same, as in nested models of equal layers."""
    weights: dict[str, Any] = {}
    for variable in model.weights:
        if weights.setdefault(variable.path, variable) is not variable:
            raise ModelError(f"Two weights of the model are called {variable.path!r}: give its layers different names.")
    return weights
