"""Grad-CAM and Grad-CAM++: the last feature maps, weighted by the gradient of a class score.

Grad-CAM: Selvaraju et al., 2017, arXiv:1610.02391. Grad-CAM++: Chattopadhay et al., 2018, arXiv:1710.11063, with the
exponential of the logit as the score, which its closed form assumes.

Both give each feature map one weight, its gradient averaged over all positions. Before a flatten layer, a feature map
means something different at each position, and the average is meaningless: networks trained to classify by one corner
got maps of zeros. There, each position keeps its own weight: HiResCAM, Draelos and Carin, 2020, arXiv:2011.08891, which
equals Grad-CAM for average pooling and one dense layer.

For segmentation, the score is the sum of the class logits over the pixels predicted as the class: Seg-Grad-CAM,
Vinogradova et al., 2020, arXiv:2002.11434. The maps are the last ones of the backbone, before the decoder; if a decoder
joins maps of several sizes, the first that it joins. After fine-tuning, the backbone's last maps can be constant,
because others bypass them, and then they explain nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import backend
from sightline._keras.process_state import silence_logging
from sightline.callbacks import Progress, no_progress
from sightline.data.batches import iterate_slices
from sightline.errors import ModelError
from sightline.explain.localization import resize_heat
from sightline.inference.runner import call_padded, choose_batch_size
from sightline.models.decoders import FIRST_JOIN
from sightline.models.head import FLATTEN_LAYER, LOGITS, POOL_LAYER, TWO_CLASSES_LAYER

Arrays = tuple[NDArray[np.float32], NDArray[np.float32]]
Gradient = Callable[[NDArray[np.uint8], NDArray[np.float32]], Arrays]


class GradCam(ABC):
    """Grad-CAM of one model, prepared once for any number of images."""

    keeps_positions = False  # whether each position has weights of its own, as in front of a flatten layer

    @abstractmethod
    def compute_gradients(
        self, pixels: NDArray[np.uint8], class_indices: NDArray[np.int64], regions: NDArray[np.bool_] | None
    ) -> NDArray[np.float32]:
        """Return float32 [N, 2, h, w, F]: the feature maps of `pixels`, and the gradient of the class scores at them.

        The arguments are those of `heat`, for the images of a batch.
        """

    def heat(
        self,
        pixels: NDArray[np.uint8],
        class_indices: NDArray[np.int64],
        *,
        plus: bool = False,
        regions: NDArray[np.bool_] | None = None,
        progress: Progress = no_progress,
    ) -> NDArray[np.float32]:
        """Return heat float32 [N, H, W], at least 0, for uint8 `pixels` [N, H, W, C] and classes `class_indices` [N].

        `regions` [N, H, W] are the pixels whose logits are the score, if each pixel has a class.
        """
        size = min(choose_batch_size(pixels.shape[1:]), len(pixels))
        if regions is not None:
            size = 1  # the gradient passes through a whole decoder
        out = np.zeros(pixels.shape[:3], np.float32)

        def compute(positions: NDArray[np.int64]) -> NDArray[np.float32]:
            chosen = None if regions is None else regions[positions]
            return self.compute_gradients(pixels[positions], class_indices[positions], chosen)

        for rows in iterate_slices(len(pixels), size):
            positions = np.arange(rows.start, rows.stop)
            for i, (maps, slopes) in zip(positions, call_padded(compute, positions, size), strict=True):
                heat = combine_maps(maps, slopes, plus=plus, flat=self.keeps_positions)
                out[i] = resize_heat(heat, *pixels.shape[1:3])
            progress("Grad-CAM", rows.stop, len(pixels))
        return out


class KerasGradCam(GradCam):
    """Grad-CAM of a Keras model."""

    def __init__(self, model: Any) -> None:
        keras = backend.keras()
        maps = last_feature_maps(model)
        self.model = model
        self.keeps_positions = any(layer.name == FLATTEN_LAYER for layer in model.layers)
        self._sigmoid = any(layer.name == TWO_CLASSES_LAYER for layer in model.layers)
        after = keras.Model([model.input, maps], model.output[LOGITS])  # a decoder also needs earlier maps
        self._gradient = compile_gradient(keras.Model(model.input, maps), after)

    def compute_gradients(
        self, pixels: NDArray[np.uint8], class_indices: NDArray[np.int64], regions: NDArray[np.bool_] | None
    ) -> NDArray[np.float32]:
        """Return the maps and their gradient; see `GradCam`."""
        weights = self.score_weights(class_indices)
        if regions is not None:
            weights = regions[..., None] * weights[:, None, None]
        return np.stack(self._gradient(pixels, weights), 1)

    def score_weights(self, class_indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the weights [N, K] whose product with the logits is the score of each image's class: its logit.

        With a sigmoid head the first logit is 0 by definition, so the score is the difference of both logits.
        """
        one_hot = np.eye(self.model.output[LOGITS].shape[-1], dtype=np.float32)[class_indices]
        return 2 * one_hot - 1 if self._sigmoid else one_hot


def combine_maps(
    maps: NDArray[np.float32], slopes: NDArray[np.float32], *, plus: bool, flat: bool
) -> NDArray[np.float32]:
    """Return the heat [h, w], at least 0, of feature maps [h, w, F] and the gradient `slopes` of the score at them.

    With `flat`, for a head that flattens, each position has its own weights. With `plus`, negative values of the maps
    count as 0 in the weights: Grad-CAM++ was derived for maps after a ReLU.
    """
    weights = slopes
    if plus:  # where the gradient g is above 0, alpha * g = g^2 * g / (2 * g^2 + sum(maps) * g^3)
        rising = np.maximum(slopes, 0)
        weights = rising / (2 + np.maximum(maps, 0).sum((0, 1)) * rising)
    if not flat:
        weights = weights.mean((0, 1), keepdims=True)
    heat: NDArray[np.float32] = (maps * weights).sum(-1)
    return np.maximum(heat, 0)


def last_feature_maps(model: Any) -> Any:
    """Return the symbolic feature maps [N, h, w, F] before the head; raises `ModelError` if there are none.

    Max pooling and dropout right before the head are skipped: VGG's maps are then 14x14 instead of 7x7, as in the
    paper. For a decoder that joins maps, they are the first joined ones.
    """
    joined = next((layer for layer in model.layers if layer.name == FIRST_JOIN), None)
    if joined is not None:
        return joined.output
    head = next((layer for layer in model.layers if layer.name in {POOL_LAYER, FLATTEN_LAYER}), None)
    if head is None or len(head.input.shape) != 4:
        raise ModelError(
            "Grad-CAM needs a network with feature maps before a layer named pool or flatten, as all networks of "
            "`sightline models` have: use --method occlusion or rise."
        )
    layers = backend.keras().layers
    producers = {id(layer.output): layer for layer in model.layers}
    maps = head.input
    while isinstance(before := producers.get(id(maps)), layers.MaxPooling2D | layers.Dropout):
        maps = before.input
    return maps


def compile_gradient(front: Any, back: Any) -> Gradient:
    """Return a function of pixels [N, H, W, C] and weights [N, K] that is compiled once for each shape.

    It returns the feature maps ``front(pixels)``, float32 [N, h, w, F], and the gradient of ``sum(weights *
    back([pixels, maps]))`` with respect to the maps, of the same shape: each image's score is its own weighted sum of
    logits. `weights` may be [N, H, W, K], for the logits of each pixel. Layers run as in inference, in full float32.
    The models' weights are read at each call.
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
        with silence_logging("tensorflow"):  # it warns about retracing when several models are explained
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
