"""Weight initialization as set by ``model.initializer``, seeded by the path of each weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sightline import backend
from sightline.models.head import DENSE_LAYER
from sightline.models.layers import is_kernel
from sightline.seeding import derive_seed

InitScheme = Literal["gaussian", "he", "glorot", "identity"]
GAUSSIAN_STD = 0.01  # for "gaussian": Krizhevsky et al., 2012, section 5
MAX_IMAGES = 1000  # enough to estimate the covariance of 2x2 patches
# Added to each variance, so that directions with little variance are not amplified (Jordan, 2024).
VARIANCE_FLOOR = 5e-4


def initialize_weights(
    model: Any, init: InitScheme, seed: int, skip_layers: Collection[str], ones_bias_layers: Collection[str]
) -> None:
    """Initialize the kernels and biases of `model` in place, except in the layers named in `skip_layers`.

    Layers whose own initializer is Zeros keep their values, such as zeros or bilinear interpolation in a decoder.

    gaussian: normal with mean 0 and standard deviation 0.01; he: truncated normal of variance 2 / fan_in (He et al.,
    2015, arXiv:1502.01852); glorot: uniform of variance 2 / (fan_in + fan_out) (Glorot and Bengio, 2010); identity:
    uniform of variance 1 / (3 fan_in), but the first filters of a convolution each pass on one input channel, and the
    last dense layer has a standard deviation of 1 / fan_in (Jordan, 2024, arXiv:2404.00498). Biases start at zero, or
    at one in the layers named in `ones_bias_layers`, including their groups (``conv2_1`` for ``conv2``). Normalization
    scales and offsets do not change.
    """
    initializers, layers = backend.keras().initializers, backend.keras().layers
    for layer in model.layers:
        is_set = isinstance(getattr(layer, "kernel_initializer", None), initializers.Zeros)
        if is_set or layer.name in skip_layers:
            continue
        for variable in layer.weights:
            if is_kernel(variable):
                is_depthwise = variable.path.endswith("depthwise_kernel") or isinstance(layer, layers.DepthwiseConv2D)
                weights = _sample_weights(variable, is_depthwise, init, derive_seed(seed, variable.path))
                backend.assign(variable, weights)
            elif variable.path.endswith("bias"):
                starts_at_one = layer.name.partition("_")[0] in ones_bias_layers
                backend.assign(variable, np.full(tuple(variable.shape), float(starts_at_one)))


def _sample_weights(variable: Any, depthwise: bool, init: InitScheme, seed: int) -> Any:  # noqa: FBT001  # private
    keras = backend.keras()
    shape = tuple(variable.shape)
    if depthwise:  # the fan-in is height x width; the plain shape would count all channels
        shape = (*shape[:-2], 1, math.prod(shape[-2:]))
    initializer = {
        "gaussian": lambda: keras.initializers.RandomNormal(0.0, GAUSSIAN_STD, seed=seed % 2**31),
        "he": lambda: keras.initializers.HeNormal(seed=seed % 2**31),
        "glorot": lambda: keras.initializers.GlorotUniform(seed=seed % 2**31),
        "identity": lambda: keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform", seed=seed % 2**31),
    }[init]()
    weights = initializer(shape, dtype=variable.dtype)
    if init == "identity":
        weights = _pass_inputs_on(variable, np.array(keras.ops.convert_to_numpy(weights)))
    return keras.ops.reshape(weights, variable.shape)


def _pass_inputs_on(variable: Any, weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the kernel `weights` with an identity for a convolution, and close to zero for the last dense layer."""
    if variable.path.rpartition("/")[0].endswith(DENSE_LAYER):
        return weights * np.float32(math.sqrt(3 / len(weights)))
    if weights.ndim == 4 and weights.shape[2] > 1:  # not depthwise
        height, width, inputs, filters = weights.shape
        count = min(inputs, filters)
        weights[..., :count] = 0
        weights[height // 2, width // 2, range(count), range(count)] = 1
    return weights


def init_whitening(
    model: Any, name: str | None, count: int, take: Callable[[NDArray[np.int64]], NDArray[np.uint8]]
) -> None:
    """Initialize the layer `name` from images spread evenly over all `count` training images; None does nothing.

    `take` returns the images uint8 [N, H, W, C] at int64 positions [N].
    """
    if name is not None:
        positions = np.linspace(0, count - 1, min(count, MAX_IMAGES)).astype(np.int64)
        whiten_layer(model, name, take(positions))


def whiten_layer(model: Any, name: str, pixels: NDArray[np.uint8]) -> None:
    """Set the filters of the convolution `name` to its patches' whitened principal directions and their negatives.

    `pixels` are uint8 [N, H, W, C]. The layer must follow the normalization directly and have twice as many filters as
    a patch has values. Each direction is divided by the standard deviation along it; biases are zero. Coates and Ng,
    2012, Learning Feature Representations with K-Means, section 2.2; as a first layer: Page, 2019, How to Train Your
    ResNet, part 8.
    """
    keras = backend.keras()
    layer = model.get_layer(name)
    inputs = np.asarray(keras.Model(model.input, layer.input).predict_on_batch(pixels), np.float64)
    height, width, channels = layer.kernel.shape[:3]
    patches = np.lib.stride_tricks.sliding_window_view(inputs, (height, width), axis=(1, 2))  # [N, H', W', C, h, w]
    rows = np.moveaxis(patches, 3, -1).reshape(-1, height * width * channels)
    covariance = np.einsum("ni,nj->ij", rows, rows, optimize=False) / len(rows)  # one thread: bit-identical everywhere
    values, vectors = np.linalg.eigh(covariance)
    directions = (vectors / np.sqrt(values + VARIANCE_FLOOR)).reshape(height, width, channels, -1)
    backend.assign(layer.kernel, np.concatenate([directions, -directions], axis=-1).astype(np.float32))
    backend.assign(layer.bias, np.zeros(layer.bias.shape, np.float32))
