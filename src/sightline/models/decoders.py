"""Decoders: from the feature maps of a backbone to scores for each class and pixel at the size of its input.

A backbone halves its maps at each stride; a decoder undoes this step by step. If a map is not exactly half the size of
the previous one (45 rows become 23), the surplus in the decoder is cut off at the end.

    bilinear     a 1x1 convolution of the backbone's maps of the same size, concatenated with the upsampled maps, and a
                 3x3 convolution (as in a U-Net: Ronneberger et al., 2015, arXiv:1505.04597), for pretrained backbones
    transposed   transposed convolutions alone, as in the tutorials of fully convolutional networks
    fcn32, fcn16, fcn8
                 the sum of scores of one, two or three sizes, upsampled by transposed convolutions that start as
                 bilinear interpolation (Long et al., 2015, arXiv:1411.4038)
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from sightline import backend
from sightline._keras import graphs
from sightline.errors import UsageError
from sightline.models.entry import Decoder
from sightline.models.head import DENSE_LAYER

WIDTHS = (128, 96, 64, 48, 32)
"""Channels of the decoder's maps, from the smallest maps to the size of the input; the last number repeats."""
FIRST_JOIN = "decoder1_conv_relu"
"""The layer of a bilinear decoder where backbone maps of two sizes are first combined."""


def apply_decoder(name: Decoder, inputs: Any, features: Any, classes: int) -> Any:
    """Return the scores of each pixel, [N, H, W, classes], from the maps `features` that a backbone made of `inputs`.

    Raises `UsageError` if the backbone's maps do not halve at each stride.
    """
    skips = find_skips(inputs, features, pooled=name.startswith("fcn"))
    if not skips:  # a backbone without strides
        return backend.keras().layers.Conv2D(classes, 1, name=DENSE_LAYER, dtype="float32")(features)
    if name == "bilinear":
        return _decode_bilinear(features, skips, classes)
    if name == "transposed":
        return _decode_transposed(features, skips, classes)
    return _decode_fcn(features, skips, classes, sizes={"fcn32": 1, "fcn16": 2, "fcn8": 3}[name])


def find_skips(inputs: Any, features: Any, *, pooled: bool) -> list[Any]:
    """Return the backbone's last maps of each size larger than `features`, smallest first.

    With `pooled`, maps from max pooling are preferred, such as pool3 and pool4 of VGG16, whose scores Long et al. add.
    The last maps have the size of `inputs`, and may be the normalized pixels themselves. Maps that are only padded for
    the next stride do not count, and neither do smaller ones, such as in squeeze-and-excitation.
    """
    last: dict[tuple[int, int], Any] = {}
    pooled_sizes: set[tuple[int, int]] = set()
    keras, smallest = backend.keras(), tuple(features.shape[1:3])
    if None in smallest:
        raise UsageError(
            "The maps of this network have no fixed size, so a decoder cannot enlarge them: choose another."
        )
    for node in graphs.list_nodes(keras.Model(inputs, features)):
        for tensor in () if isinstance(node.operation, keras.layers.ZeroPadding2D) else node.outputs:
            size = tuple(tensor.shape[1:3])
            if len(tensor.shape) != 4 or None in size or max(size) <= max(smallest) or min(size) < min(smallest):
                continue
            if size not in pooled_sizes:
                last[size] = tensor
            if pooled and isinstance(node.operation, keras.layers.MaxPooling2D) and max(node.operation.strides) > 1:
                pooled_sizes.add(size)
    skips = sorted(last.values(), key=lambda tensor: tensor.shape[1] * tensor.shape[2])
    sizes = [tuple(tensor.shape[1:3]) for tensor in (features, *skips)]
    for small, large in pairwise(sizes):
        if small != tuple(-(-side // 2) for side in large):
            raise UsageError(
                f"The maps of this network shrink from {large[0]}x{large[1]} to {small[0]}x{small[1]}, which a decoder "
                "cannot undo: each stride must halve them, rounded up. Choose an input.height and an input.width that "
                "are multiples of 32, or another network."
            )
    return skips


def _decode_bilinear(x: Any, skips: Sequence[Any], classes: int) -> Any:
    layers = backend.keras().layers
    *maps, pixels = skips
    for number, skip in enumerate(maps, 1):
        width = WIDTHS[min(number, len(WIDTHS)) - 1]
        x = _enlarge_bilinearly(x, skip, f"decoder{number}_up")
        reduced = _convolve(skip, width // 2, 1, f"decoder{number}_skip")
        x = layers.Concatenate(name=f"decoder{number}_join")([x, reduced])
        x = _convolve(x, width, 3, f"decoder{number}_conv")
    scores = layers.Conv2D(classes, 1, name=DENSE_LAYER, dtype="float32")(x)
    return _enlarge_bilinearly(scores, pixels)  # a convolution at full size would cost more than all others


def _decode_transposed(x: Any, skips: Sequence[Any], classes: int) -> Any:
    layers = backend.keras().layers
    for number, skip in enumerate(skips, 1):
        width = WIDTHS[min(number, len(WIDTHS)) - 1]
        x = layers.Conv2DTranspose(
            width, 4, strides=2, padding="same", activation="relu", name=f"decoder{number}_transposed"
        )(x)  # fmt: skip
        x = _crop(x, skip, f"decoder{number}_crop")
    return layers.Conv2D(classes, 1, name=DENSE_LAYER, dtype="float32")(x)


def _decode_fcn(x: Any, skips: Sequence[Any], classes: int, sizes: int) -> Any:
    """Add the scores of `sizes` sizes, starting at the smallest, and enlarge the sum to the size of the pixels."""
    layers = backend.keras().layers
    scores = layers.Conv2D(classes, 1, name="score1")(x)
    joined = min(sizes - 1, len(skips) - 1)
    for number, skip in enumerate(skips[:joined], 2):
        scores = _crop(_enlarge(scores, 2, f"score{number}_up"), skip, f"score{number}_crop")
        scores = layers.Add(name=f"score{number}_sum")([
            scores,
            layers.Conv2D(classes, 1, kernel_initializer="zeros", name=f"score{number}")(skip),  # as in the paper
        ])  # fmt: skip
    scores = _enlarge(scores, 2 ** (len(skips) - joined), DENSE_LAYER, dtype="float32")
    return _crop(scores, skips[-1], f"{DENSE_LAYER}_crop")


def _enlarge(x: Any, factor: int, name: str, dtype: str | None = None) -> Any:
    keras = backend.keras()
    layer = keras.layers.Conv2DTranspose(
        x.shape[-1], 2 * factor, strides=factor, padding="same", use_bias=False, name=name, dtype=dtype,
        kernel_initializer=make_bilinear_kernel,
    )  # fmt: skip
    enlarged = layer(x)
    layer.kernel_initializer = keras.initializers.Zeros()  # a model file cannot refer to our function
    return enlarged


def make_bilinear_kernel(shape: Sequence[int], dtype: Any = None) -> Any:
    """Return the kernel [k, k, K, K] of a transposed convolution with stride k / 2 that interpolates bilinearly.

    >>> make_bilinear_kernel((4, 4, 1, 1))[0, :, 0, 0].tolist()
    [0.0625, 0.1875, 0.1875, 0.0625]
    """
    size, channels = shape[0], shape[-1]
    factor = (size + 1) // 2
    center = factor - 1 if size % 2 else factor - 0.5
    weights = 1 - np.abs(np.arange(size) - center) / factor
    kernel = np.zeros(shape, np.float32)
    kernel[:, :, np.arange(channels), np.arange(channels)] = np.outer(weights, weights)[..., None]
    return kernel if dtype is None else backend.keras().ops.convert_to_tensor(kernel, dtype)


def _enlarge_bilinearly(x: Any, skip: Any, name: str = "pixels_up") -> Any:
    layers = backend.keras().layers
    return _crop(layers.UpSampling2D(2, interpolation="bilinear", name=name)(x), skip, f"{name}_crop")


def _convolve(x: Any, width: int, kernel: int, name: str) -> Any:
    layers = backend.keras().layers
    x = layers.Conv2D(width, kernel, padding="same", use_bias=False, name=name)(x)
    x = layers.BatchNormalization(momentum=0.9, name=f"{name}_bn")(x)  # decoders train for few steps
    return layers.Activation("relu", name=f"{name}_relu")(x)


def _crop(x: Any, skip: Any, name: str) -> Any:
    """Cut off the last rows and columns of `x` to the size of `skip`."""
    rows, columns = x.shape[1] - skip.shape[1], x.shape[2] - skip.shape[2]
    if not (rows or columns):
        return x
    return backend.keras().layers.Cropping2D(((0, rows), (0, columns)), name=name)(x)
