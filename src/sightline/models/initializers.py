"""Weight initialization as set by ``model.initializer``, seeded by the path of each weight."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any, Literal

import numpy as np

from sightline import backend
from sightline.models.layers import is_kernel
from sightline.seeding import derive_seed

InitScheme = Literal["gaussian", "he", "glorot"]
GAUSSIAN_STD = 0.01  # of "gaussian": Krizhevsky et al., 2012, section 5


def initialize_weights(
    model: Any, init: InitScheme, seed: int, skip_layers: Collection[str] = (), ones_bias_layers: Collection[str] = ()
) -> None:
    """Initialize the kernels and biases of `model` in place, except in the layers named in `skip_layers`.

    gaussian: normal with mean 0 and standard deviation 0.01; he: truncated normal of variance 2 / fan_in (He et al.,
    2015, arXiv:1502.01852); glorot: uniform of variance 2 / (fan_in + fan_out) (Glorot and Bengio, 2010). Biases start
    at zero, or at one in the layers named in `ones_bias_layers`, their groups included (``conv2_1`` for ``conv2``).
    Normalization scales and offsets do not change.
    """
    for layer in model.layers:
        if layer.name in skip_layers:
            continue
        for variable in layer.weights:
            if is_kernel(variable):
                weights = _sample_weights(
                    variable, _is_depthwise(layer, variable), init, derive_seed(seed, variable.path)
                )
                backend.assign(variable, weights)
            elif variable.path.endswith("bias"):
                starts_at_one = layer.name.partition("_")[0] in ones_bias_layers
                backend.assign(variable, np.full(tuple(variable.shape), float(starts_at_one)))


def _is_depthwise(layer: Any, variable: Any) -> bool:
    return variable.path.endswith("depthwise_kernel") or isinstance(layer, backend.keras().layers.DepthwiseConv2D)


def _sample_weights(variable: Any, depthwise: bool, init: InitScheme, seed: int) -> Any:  # noqa: FBT001  # private
    keras = backend.keras()
    shape = tuple(variable.shape)
    if depthwise:  # fan-in is height x width; the plain shape would count all channels
        shape = (*shape[:-2], 1, math.prod(shape[-2:]))
    initializer = {
        "gaussian": lambda: keras.initializers.RandomNormal(0.0, GAUSSIAN_STD, seed=seed % 2**31),
        "he": lambda: keras.initializers.HeNormal(seed=seed % 2**31),
        "glorot": lambda: keras.initializers.GlorotUniform(seed=seed % 2**31),
    }[init]()
    return keras.ops.reshape(initializer(shape, dtype=variable.dtype), variable.shape)
