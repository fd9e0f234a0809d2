"""The gradient that heat maps are made of, on the backend in use: `make test-backends` runs it on all three."""

from __future__ import annotations

import numpy as np
import pytest

from networks import make_plan, random_images
from sightline import backend
from sightline.explain.gradcam import KerasGradCam
from sightline.models.build import build_model


@pytest.mark.backends
def test_the_gradient_is_that_of_a_dense_layer_behind_average_pooling() -> None:
    model = build_model(make_plan("cifar10-deep", side=32, pooling="average", hidden_units=())).model
    maps, slopes = KerasGradCam(model)._gradient(random_images(2, 32), np.eye(2, dtype=np.float32))
    kernel = backend.keras().ops.convert_to_numpy(model.get_layer("predictions").kernel)
    np.testing.assert_allclose(slopes.sum((1, 2)), kernel.T, rtol=1e-4, atol=1e-6)
    assert maps.dtype == slopes.dtype == np.float32
    assert maps.shape == (2, 14, 14, 64)


@pytest.mark.skipif(backend.name() != "tensorflow", reason="only TensorFlow warns about retracing")
def test_explaining_one_model_after_another_logs_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    for seed in range(7):  # it warns from the fifth on
        model = build_model(make_plan("cifar10-deep", side=32, pooling="average", hidden_units=(), seed=seed)).model
        KerasGradCam(model)._gradient(random_images(1, 32), np.ones((1, 2), np.float32))
    assert caplog.records == []
