"""Frozen layers run in ONNX Runtime if it agrees with Keras, else in Keras."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from networks import RUNS, network, pictures
from sightline import backend
from sightline.config import StageConfig
from sightline.models.registry import ENTRIES
from sightline.prediction import layers as module
from sightline.prediction.layers import layers
from sightline.training import stages


def frozen(name: str, share: float = 0.0) -> Any:
    made = network(name)
    tensor = stages.cut(made, StageConfig(thaw=int(share * len(made.backbone))))
    return backend.keras().Model(made.model.input, tensor)


@pytest.mark.parametrize("name", RUNS)
def test_frozen_layers_of_each_network_run_elsewhere_alike(name: str) -> None:
    model, pixels = frozen(name), pictures(3, ENTRIES[name].smallest)
    found = layers(model, pixels, "auto", 1)
    assert found.made_by is not None, "it must not have fallen back"
    expected = np.asarray(model.predict_on_batch(pixels))
    np.testing.assert_allclose(found.run(pixels), expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.backends
def test_layers_between_two_cuts_take_features() -> None:
    made = network("fashion-cnn")
    first, second = (stages.cut(made, StageConfig(thaw=thaw)) for thaw in (5, 0))
    keras = backend.keras()
    features = keras.Model(made.model.input, first).predict_on_batch(pictures(3, 8))
    between = keras.Model(first, second)
    found = layers(between, features, "auto", 1)
    assert found.made_by is not None
    np.testing.assert_allclose(found.run(features), between.predict_on_batch(features), atol=1e-5)


@pytest.mark.backends
def test_keras_on_demand() -> None:
    model, pixels = frozen("fashion-cnn"), pictures(3, 8)
    found = layers(model, pixels, "keras", 1)
    assert found.made_by is None
    np.testing.assert_allclose(found.run(pixels), model.predict_on_batch(pixels), atol=1e-6)


def test_a_file_that_answers_otherwise_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    model, pixels = frozen("fashion-cnn"), pictures(3, 8)

    class Wrong:
        def run(self, _names: list[str], given: dict[str, NDArray[Any]]) -> list[Any]:
            return [1.001 * np.asarray(model.predict_on_batch(given["pixels"]))]

    monkeypatch.setattr(module, "session", lambda *_: Wrong())
    found = layers(model, pixels, "auto", 1)
    assert found.made_by is None
    np.testing.assert_allclose(found.run(pixels), model.predict_on_batch(pixels), atol=1e-6)


def test_a_layer_that_no_file_can_hold_is_left_to_keras() -> None:
    keras = backend.keras()
    inputs = keras.Input((8, 8, 3), dtype="uint8")
    model = keras.Model(inputs, keras.layers.UpSampling2D()(keras.layers.Rescaling(1.0)(inputs)))
    found = layers(model, pictures(2, 8), "auto", 1)
    assert found.made_by is None
    assert found.run(pictures(2, 8)).shape == (2, 16, 16, 3)
