"""The gradient of a class score with respect to feature maps, by each backend: Keras has no public function for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import backend

Arrays = tuple[NDArray[np.float32], NDArray[np.float32]]
Gradient = Callable[[NDArray[np.uint8], NDArray[np.float32]], Arrays]


def compile_gradient(front: Any, back: Any) -> Gradient:
    """Return a function of pixels [N, H, W, C] and weights [N, K] that is compiled once for each shape.

    It returns the feature maps ``front(pixels)``, float32 [N, h, w, F], and the gradient of ``sum(weights *
    back([pixels, maps]))`` for the maps, of the same shape: each image's score is its own weighted sum of logits.
    `weights` may be [N, H, W, K], for the logits of each pixel. Layers run as in inference, in full float32. The
    models' weights are read at each call.
    """
    makers = {"tensorflow": _tensorflow_gradient, "jax": _jax_gradient, "torch": _torch_gradient}
    compiled = makers[backend.name()](front, back)

    def call(pixels: NDArray[np.uint8], weights: NDArray[np.float32]) -> Arrays:
        with backend.full_precision():
            return compiled(pixels, weights)

    return call


def _tensorflow_gradient(front: Any, back: Any) -> Gradient:
    tf = backend.tensorflow()

    @tf.function(reduce_retracing=False, autograph=False)
    def compiled(pixels: Any, weights: Any) -> Any:
        maps = front(pixels, training=False)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(maps)
            score = tf.reduce_sum(weights * tf.cast(back([pixels, maps], training=False), tf.float32))
        return tf.cast(maps, tf.float32), tf.cast(tape.gradient(score, maps), tf.float32)

    def call(pixels: NDArray[np.uint8], weights: NDArray[np.float32]) -> Arrays:
        maps, slopes = compiled(tf.constant(pixels), tf.constant(weights))  # arrays would be traced by their values
        return maps.numpy(), slopes.numpy()

    return call


def _jax_gradient(front: Any, back: Any) -> Gradient:
    import jax

    def score(maps: Any, pixels: Any, weights: Any, values: Any) -> Any:
        logits, _ = back.stateless_call(*values, [pixels, maps], training=False)
        return (weights * logits.astype("float32")).sum()

    @jax.jit
    def compiled(pixels: Any, weights: Any, before: Any, after: Any) -> Any:
        maps, _ = front.stateless_call(*before, pixels, training=False)
        return maps, jax.grad(score)(maps, pixels, weights, after)

    def call(pixels: NDArray[np.uint8], weights: NDArray[np.float32]) -> Arrays:
        maps, slopes = compiled(pixels, weights, _values(front), _values(back))
        return np.asarray(maps, np.float32), np.asarray(slopes, np.float32)

    return call


def _values(model: Any) -> tuple[list[Any], list[Any]]:
    return [v.value for v in model.trainable_variables], [v.value for v in model.non_trainable_variables]


def _torch_gradient(front: Any, back: Any) -> Gradient:
    import torch

    to_tensor = backend.keras().ops.convert_to_tensor

    def call(pixels: NDArray[np.uint8], weights: NDArray[np.float32]) -> Arrays:
        images = to_tensor(pixels)
        with torch.no_grad():
            maps = front(images, training=False)
        maps = maps.detach().requires_grad_(True)  # noqa: FBT003  # torch's own signature
        score = (to_tensor(weights) * back([images, maps], training=False).float()).sum()
        (slopes,) = torch.autograd.grad(score, maps)
        return maps.detach().float().cpu().numpy(), slopes.float().cpu().numpy()

    return call
