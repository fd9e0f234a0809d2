"""Weight initialization as set by ``model.init``, seeded by the path of each weight."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any, Literal

import numpy as np

from sightline import backend
from sightline.randomness import derive

Init = Literal["gaussian", "he", "glorot"]
DEVIATION = 0.01  # of "gaussian": Krizhevsky et al., 2012, section 5


def initialize(model: Any, init: Init, seed: int, skip: Collection[str] = (), ones: Collection[str] = ()) -> None:
    """Initialize the kernels and biases of `model` in place, except in the layers named in `skip`.

    gaussian: normal with mean 0 and standard deviation 0.01; he: truncated normal of variance 2 / fan_in (He et al.,
    2015, arXiv:1502.01852); glorot: uniform of variance 2 / (fan_in + fan_out) (Glorot and Bengio, 2010). Biases start
    at zero, or at one in the layers named in `ones`, their groups included (``conv2_1`` for ``conv2``). Normalization
    scales and offsets do not change.
    """
    for layer in model.layers:
        if layer.name in skip:
            continue
        for variable in layer.weights:
            if is_kernel(variable):
                drawn = _drawn(variable, _is_depthwise(layer, variable), init, derive(seed, variable.path))
                backend.assign(variable, drawn)
            elif variable.path.endswith("bias"):
                one = layer.name.partition("_")[0] in ones
                backend.assign(variable, np.full(tuple(variable.shape), float(one)))


def is_kernel(variable: Any) -> bool:
    """Return whether `variable` is a weight matrix or a filter bank, not a one-dimensional scale per channel."""
    return variable.path.endswith("kernel") and len(variable.shape) > 1


def _is_depthwise(layer: Any, variable: Any) -> bool:
    return variable.path.endswith("depthwise_kernel") or isinstance(layer, backend.keras().layers.DepthwiseConv2D)


def _drawn(variable: Any, depthwise: bool, init: Init, seed: int) -> Any:  # noqa: FBT001  # private
    keras = backend.keras()
    shape = tuple(variable.shape)
    if depthwise:  # fan-in is height x width; the plain shape would count all channels
        shape = (*shape[:-2], 1, math.prod(shape[-2:]))
    made = {
        "gaussian": lambda: keras.initializers.RandomNormal(0.0, DEVIATION, seed=seed % 2**31),
        "he": lambda: keras.initializers.HeNormal(seed=seed % 2**31),
        "glorot": lambda: keras.initializers.GlorotUniform(seed=seed % 2**31),
    }[init]()
    return keras.ops.reshape(made(shape, dtype=variable.dtype), variable.shape)
