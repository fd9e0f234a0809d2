"""Initial weights as the setting ``model.init`` names them, by seed and by the name of each weight."""

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
    """Set each kernel of `model` and zero each bias, but for the layers called in `skip`.

    gaussian: N(0, 0.01); he: truncated normal of variance 2 / inputs (He et al., 2015, arXiv:1502.01852); glorot:
    uniform of variance 2 / (inputs + outputs) (Glorot and Bengio, 2010). Scales and shifts of normalisation stay. The
    biases of layers in `ones` start at one, their groups (``conv2_1`` for ``conv2``) too.
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
    """Whether it is a matrix or a bank of filters; a scale for each channel, of one dimension, is none."""
    return variable.path.endswith("kernel") and len(variable.shape) > 1


def _is_depthwise(layer: Any, variable: Any) -> bool:
    return variable.path.endswith("depthwise_kernel") or isinstance(layer, backend.keras().layers.DepthwiseConv2D)


def _drawn(variable: Any, depthwise: bool, init: Init, seed: int) -> Any:  # noqa: FBT001  # private
    keras = backend.keras()
    shape = tuple(variable.shape)
    if depthwise:  # a filter of it has height x width inputs; by its shape it would seem to see all channels
        shape = (*shape[:-2], 1, math.prod(shape[-2:]))
    made = {
        "gaussian": lambda: keras.initializers.RandomNormal(0.0, DEVIATION, seed=seed % 2**31),
        "he": lambda: keras.initializers.HeNormal(seed=seed % 2**31),
        "glorot": lambda: keras.initializers.GlorotUniform(seed=seed % 2**31),
    }[init]()
    return keras.ops.reshape(made(shape, dtype=variable.dtype), variable.shape)
