"""Facts of a built network: its parameters and the hash of its weights."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np

from sightline import backend


def parameters(model: Any) -> int:
    """Return the number of weights of a Keras model, those that do not learn included, random streams not."""
    return sum(math.prod(v.shape) for v in _weights(model))


def weights_sha256(model: Any) -> str:
    """Return the SHA-256 over path, dtype, shape and little-endian bytes of each of the model's weights, in order."""
    digest = hashlib.sha256()
    for variable in _weights(model):
        value = backend.keras().ops.convert_to_numpy(variable)
        digest.update(f"{variable.path} {value.dtype.name} {value.shape}\n".encode())
        digest.update(np.ascontiguousarray(value, value.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def _weights(model: Any) -> list[Any]:
    return list(model.weights)  # Keras leaves seeds of random layers out of `weights`, but not out of `variables`
