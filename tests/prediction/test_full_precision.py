"""The reference is computed in full float32, whatever the default precision of the device."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from networks import pictures, plan
from reduced import emulate, is_reduced, rounded
from sightline import backend
from sightline.explanation.gradcam import GradCam
from sightline.export import onnx
from sightline.models.build import build
from sightline.models.initial import initialize
from sightline.prediction import parity
from sightline.prediction.keras import KerasPredictor
from sightline.prediction.layers import agree
from sightline.prediction.onnx import OnnxPredictor
from sightline.prediction.parity import Tolerance
from sightline.preprocess import Preprocess

pytestmark = pytest.mark.backends

CLASSES = ("a", "b", "c")
PIXELS = pictures(16, 12)


def lively() -> Any:
    """Return a model whose outputs differ between images, like those of a trained one."""
    model = build(plan("fashion-cnn", classes=3, side=12)).model
    initialize(model, "he", 5)
    logits = KerasPredictor(model, CLASSES, Preprocess(12, 12)).outputs(PIXELS).logits
    kernel, bias = model.get_layer("predictions").weights
    scale = 3 / logits.std(0)
    backend.assign(kernel, backend.keras().ops.convert_to_numpy(kernel) * scale)
    backend.assign(bias, -logits.mean(0) * scale)
    return model


def through_onnx(model: Any) -> NDArray[np.float32]:
    return OnnxPredictor(onnx.convert(model), CLASSES, Preprocess(12, 12)).probabilities(PIXELS)


def test_ten_bits_of_mantissa_would_be_refused() -> None:
    """A copy of the model with rounded kernels and inputs, as in TF32."""
    model = lively()
    truth = KerasPredictor(model, CLASSES, Preprocess(12, 12)).probabilities(PIXELS)
    assert parity.compare(truth, through_onnx(model)).within(Tolerance())
    for variable in model.variables:
        array = backend.keras().ops.convert_to_numpy(variable)
        if array.dtype == np.float32:
            backend.assign(variable, rounded(array))
    found = parity.compare(truth, through_onnx(model))
    assert found.greatest_difference > 2 * Tolerance().difference
    assert not found.within(Tolerance())


def test_the_reference_is_full_where_the_device_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    model = lively()
    file = through_onnx(model)
    with pytest.MonkeyPatch.context() as gpu:
        emulate(gpu)
        assert is_reduced()
        reduced = np.asarray(model.predict_on_batch(PIXELS)["probabilities"])
        assert not parity.compare(reduced, file).within(Tolerance()), "the emulation has no effect"
        predictor = KerasPredictor(model, CLASSES, Preprocess(12, 12))
        for answer in (predictor.outputs(PIXELS), predictor.outputs_uncompiled(PIXELS)):
            assert parity.compare(answer.probabilities, file).greatest_difference < 1e-5
        assert is_reduced(), "the setting is restored"
        features = backend.keras().Model(model.input, model.output["features"])
        expected = predictor.outputs(PIXELS).features
        assert agree(features, lambda rows: expected, PIXELS)


def test_heat_maps_are_computed_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    model, numbers = lively(), np.zeros(len(PIXELS), np.int64)
    expected = GradCam(model).heat(PIXELS, numbers)
    emulate(monkeypatch)
    np.testing.assert_allclose(GradCam(model).heat(PIXELS, numbers), expected, rtol=1e-4, atol=1e-6)


def test_an_error_puts_the_setting_back() -> None:
    before = is_reduced()

    def fail() -> None:
        assert not is_reduced()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), backend.full_precision():
        fail()
    assert is_reduced() is before
