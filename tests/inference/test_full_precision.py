"""The reference is computed in full float32, whatever the default precision of the device."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from networks import make_plan, random_images
from sightline import backend
from sightline.explain.gradcam import KerasGradCam
from sightline.export import keras_to_onnx
from sightline.inference import parity
from sightline.inference.frozen_layers import outputs_agree
from sightline.inference.parity import Tolerance
from sightline.inference.runtimes.keras import KerasPredictor
from sightline.inference.runtimes.onnx import OnnxPredictor
from sightline.models.build import build_model
from sightline.models.initializers import initialize_weights
from sightline.preprocessing import PreprocessingSpec
from tf32 import emulate_tf32, is_tf32_enabled, round_to_tf32

pytestmark = pytest.mark.backends

CLASSES = ("a", "b", "c")
PIXELS = random_images(16, 12)


def make_varied_model() -> Any:
    """Return a model whose outputs differ between images, like those of a trained one."""
    model = build_model(make_plan("fashion-cnn", classes=3, side=12)).model
    initialize_weights(model, "he", 5, (), ())
    logits = KerasPredictor(model, CLASSES, PreprocessingSpec(12, 12)).outputs(PIXELS).logits
    kernel, bias = model.get_layer("predictions").weights
    scale = 3 / logits.std(0)
    backend.assign(kernel, backend.keras().ops.convert_to_numpy(kernel) * scale)
    backend.assign(bias, -logits.mean(0) * scale)
    return model


def predict_through_onnx(model: Any) -> NDArray[np.float32]:
    return OnnxPredictor(keras_to_onnx.convert_model(model), CLASSES, PreprocessingSpec(12, 12)).probabilities(PIXELS)


def test_ten_bits_of_mantissa_would_be_refused() -> None:
    """A copy of the model with rounded kernels and inputs, as in TF32."""
    model = make_varied_model()
    truth = KerasPredictor(model, CLASSES, PreprocessingSpec(12, 12)).probabilities(PIXELS)
    assert parity.compare_probabilities(truth, predict_through_onnx(model)).is_within(Tolerance())
    for variable in model.variables:
        array = backend.keras().ops.convert_to_numpy(variable)
        if array.dtype == np.float32:
            backend.assign(variable, round_to_tf32(array))
    parity_of_reduced = parity.compare_probabilities(truth, predict_through_onnx(model))
    assert parity_of_reduced.max_difference > 2 * Tolerance().difference
    assert not parity_of_reduced.is_within(Tolerance())


def test_the_reference_is_full_where_the_device_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_varied_model()
    file = predict_through_onnx(model)
    with pytest.MonkeyPatch.context() as gpu:
        emulate_tf32(gpu)
        assert is_tf32_enabled()
        reduced = np.asarray(model.predict_on_batch(PIXELS)["probabilities"])
        assert not parity.compare_probabilities(reduced, file).is_within(Tolerance()), "the emulation has no effect"
        predictor = KerasPredictor(model, CLASSES, PreprocessingSpec(12, 12))
        for answer in (predictor.outputs(PIXELS), predictor.outputs_uncompiled(PIXELS)):
            assert parity.compare_probabilities(answer.probabilities, file).max_difference < 1e-5
        assert is_tf32_enabled(), "the setting is restored"
        features = backend.keras().Model(model.input, model.output["features"])
        expected = predictor.outputs(PIXELS).features
        assert outputs_agree(features, lambda rows: expected, PIXELS)


def test_heat_maps_are_computed_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    model, numbers = make_varied_model(), np.zeros(len(PIXELS), np.int64)
    expected = KerasGradCam(model).heat(PIXELS, numbers)
    emulate_tf32(monkeypatch)
    np.testing.assert_allclose(KerasGradCam(model).heat(PIXELS, numbers), expected, rtol=1e-4, atol=1e-6)


def test_an_error_puts_the_setting_back() -> None:
    before = is_tf32_enabled()

    def fail() -> None:
        assert not is_tf32_enabled()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), backend.full_precision():
        fail()
    assert is_tf32_enabled() is before


@pytest.mark.skipif("backend.name() == 'jax'", reason="the setting of JAX applies to a thread")
def test_the_last_of_overlapping_blocks_restores_the_setting() -> None:
    """As those of two threads may: the one that begins first ends first."""
    before = is_tf32_enabled()
    first, second = ExitStack(), ExitStack()
    states = []
    for stack in (first, second):
        stack.enter_context(backend.full_precision())
    for stack in (first, second):
        states.append(is_tf32_enabled())
        stack.close()
    assert [*states, is_tf32_enabled()] == [False, False, before]
