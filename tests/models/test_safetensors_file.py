"""A model in safetensors: the weights are identical when read back, and what does not fit is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from networks import make_plan
from sightline import backend
from sightline.errors import ModelError
from sightline.models.build import build_model
from sightline.models.describe import weights_sha256
from sightline.models.head import PROBABILITIES
from sightline.models.safetensors_file import LAYERS_FILE, WEIGHTS_FILE, decode_model, encode_model

pytestmark = pytest.mark.backends
Files = dict[str, bytes]


@pytest.fixture(scope="module")
def model() -> Any:
    return build_model(make_plan("fast-small")).model


@pytest.fixture(scope="module")
def files(model: Any) -> Files:
    return encode_model(model)


def decode(files: Files) -> Any:
    return decode_model(files[WEIGHTS_FILE], files[LAYERS_FILE])


def test_weights_and_outputs_are_identical(model: Any, files: Files) -> None:
    again = decode(files)
    assert weights_sha256(again) == weights_sha256(model)
    pixels = np.random.default_rng(0).integers(0, 256, (2, *model.input.shape[1:]), np.uint8)
    to_numpy = backend.keras().ops.convert_to_numpy
    expected, outputs = model(pixels, training=False), again(pixels, training=False)
    np.testing.assert_array_equal(to_numpy(outputs["probabilities"]), to_numpy(expected["probabilities"]))


def test_any_reader_of_safetensors_finds_each_weight_by_its_path(model: Any, files: Files) -> None:
    arrays = safetensors.numpy.load(files[WEIGHTS_FILE])
    assert set(arrays) == {variable.path for variable in model.weights}
    assert all(array.dtype == np.float32 for array in arrays.values())
    assert any(name.endswith("/moving_variance") for name in arrays)


def test_a_compiled_model_with_a_single_number_as_a_weight_is_read_back() -> None:
    keras = backend.keras()
    inputs, scaling = keras.Input((4,)), keras.layers.Normalization()
    scaling.adapt(np.eye(4, dtype=np.float32))  # it counts the images
    model = keras.Model(inputs, {PROBABILITIES: keras.layers.Dense(3, "softmax")(scaling(inputs))})
    model.compile("adam", "mse")
    again, to_numpy = decode(encode_model(model)), keras.ops.convert_to_numpy
    assert weights_sha256(again) == weights_sha256(model)
    outputs, expected = (to_numpy(each(np.ones((1, 4), np.float32))[PROBABILITIES]) for each in (again, model))
    np.testing.assert_array_equal(outputs, expected)


def test_weights_of_the_same_path_are_refused_not_mixed_up() -> None:
    """Nested models may have layers of the same name."""
    keras = backend.keras()
    x = inputs = keras.Input((4,))
    for name in ("first", "second"):
        nested = keras.Input((4,))
        x = keras.Model(nested, keras.layers.Dense(4, name="dense")(nested), name=name)(x)
    with pytest.raises(ModelError, match="Two weights of the model are called 'dense/kernel'"):
        encode_model(keras.Model(inputs, {PROBABILITIES: keras.layers.Softmax()(x)}))


def edit_arrays(change: Callable[[dict[str, Any]], object]) -> Callable[[Files], Files]:
    def apply(files: Files) -> Files:
        arrays = safetensors.numpy.load(files[WEIGHTS_FILE])
        change(arrays)
        return files | {WEIGHTS_FILE: safetensors.numpy.save(arrays)}

    return apply


def edit_layers(change: Callable[[dict[str, Any]], object]) -> Callable[[Files], Files]:
    def apply(files: Files) -> Files:
        layers = json.loads(files[LAYERS_FILE])
        change(layers)
        return files | {LAYERS_FILE: json.dumps(layers).encode()}

    return apply


def widen_first(arrays: dict[str, Any]) -> None:
    name = next(iter(arrays))
    arrays[name] = np.zeros((*arrays[name].shape, 2), np.float32)


def widen_predictions(layers: dict[str, Any]) -> None:
    layer = next(each for each in layers["config"]["layers"] if each["config"]["name"] == "predictions")
    layer["config"]["units"] = 10**12


DAMAGE: dict[str, tuple[Callable[[Files], Files], str]] = {
    "a missing weight": (edit_arrays(lambda arrays: arrays.pop(next(iter(arrays)))), "only in one of"),
    "another weight": (edit_arrays(lambda arrays: arrays.update(other=np.zeros(1, np.float32))), "'other' is only in"),
    "another shape": (edit_arrays(widen_first), "has shape"),
    "a layer that no memory holds": (
        edit_layers(widen_predictions),
        r"'predictions/.* has shape .*1000000000000,?\)",
    ),
    "half of a file": (lambda f: f | {WEIGHTS_FILE: f[WEIGHTS_FILE][: len(f[WEIGHTS_FILE]) // 2]}, "cannot be read"),
    "a header of 8 EiB": (lambda f: f | {WEIGHTS_FILE: b"\xff" * 7 + b"\x7f" + b"{}"}, "cannot be read"),
    "no JSON": (lambda f: f | {LAYERS_FILE: b"{"}, "layers.json cannot be read"),
    "deep JSON": (lambda f: f | {LAYERS_FILE: b"[" * 100_000}, "layers.json cannot be read"),
    "another object": (
        edit_layers(lambda layers: layers.update(module="os", class_name="system", config="true")),
        "layers.json cannot be read",
    ),
    "a layer that runs code": (
        edit_layers(
            lambda layers: layers["config"]["layers"][1].update(
                module="keras.layers",
                class_name="Lambda",
                config={
                    "name": "x",
                    "function": {"class_name": "__lambda__", "config": {"code": "4wA=", "defaults": None}},
                },
            )
        ),
        "function` is a Python lambda; code in a file is never run",  # where Keras says how to run it
    ),
    "a list": (lambda f: f | {LAYERS_FILE: b"[]"}, "layers.json cannot be read"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_files_that_do_not_fit_are_refused(files: Files, kind: str) -> None:
    damage, words = DAMAGE[kind]
    with pytest.raises(ModelError, match=words):
        decode(damage(dict(files)))
