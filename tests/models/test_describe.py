"""The hash of weights is what its definition says, and nothing that differs hashes alike."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from networks import network
from sightline import backend
from sightline.models.describe import parameters, weights_sha256


def holding(value: NDArray[Any], name: str = "kernel") -> Any:
    """Return what a model with one weight looks like."""
    return SimpleNamespace(weights=[backend.keras().Variable(value, dtype=value.dtype.name, name=name)])


def test_hash_is_over_path_dtype_shape_and_little_endian_bytes() -> None:
    model = network("fashion-cnn").model
    digest = hashlib.sha256()
    for variable in model.weights:
        value = np.asarray(backend.keras().ops.convert_to_numpy(variable))
        digest.update(f"{variable.path} float32 {value.shape}\n".encode())
        digest.update(value.astype("<f4").tobytes())
    assert weights_sha256(model) == digest.hexdigest()


ZEROS = np.zeros((2, 3), np.float32)


@pytest.mark.parametrize(
    "other",
    [
        (np.full((2, 3), 1e-30, np.float32), "kernel"),
        (-ZEROS, "kernel"),
        (np.zeros((3, 2), np.float32), "kernel"),
        (np.zeros((2, 3), np.int32), "kernel"),
        (ZEROS, "bias"),
    ],
    ids=["value", "sign", "shape", "dtype", "path"],
)
def test_every_difference_counts(other: tuple[NDArray[Any], str]) -> None:
    assert weights_sha256(holding(ZEROS)) == weights_sha256(holding(ZEROS.copy()))
    assert weights_sha256(holding(*other)) != weights_sha256(holding(ZEROS))


def test_random_streams_are_no_weights() -> None:
    model = network("cifar10-deep").model
    before = weights_sha256(model)
    counted = parameters(model)
    model(np.zeros((1, 8, 8, 3), np.uint8), training=True)  # draws for dropout
    assert weights_sha256(model) == before
    assert counted == sum(int(np.prod(v.shape)) for v in model.weights) == model.count_params()
    assert len(model.variables) > len(model.weights)
