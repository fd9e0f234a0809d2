"""The gradient on each backend that is installed; the suite itself runs on TensorFlow."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROBE = """
import numpy as np
import networks
from sightline import backend
from sightline.explanation.gradcam import GradCam
from sightline.models.build import build

model = build(networks.plan("cifar10-deep", side=32, pooling="average", hidden=())).model
maps, slopes = GradCam(model)._gradient(networks.pictures(2, 32), np.eye(2, dtype=np.float32))
kernel = np.asarray(backend.keras().ops.convert_to_numpy(model.get_layer("predictions").kernel))
np.testing.assert_allclose(slopes.sum((1, 2)), kernel.T, rtol=1e-4, atol=1e-6)
assert maps.dtype == slopes.dtype == np.float32
print(backend.keras().backend.backend(), maps.shape)
"""


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_the_gradient_is_right_on_each_backend(backend: str) -> None:
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    paths = [str(Path(__file__).parents[1]), *sys.path]
    environment = os.environ | {"KERAS_BACKEND": backend, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{backend} (2, 14, 14, 64)"
