"""Patch Keras' BatchNormalization and Adam to use fused TensorFlow kernels; saved files do not change.

Measured on two cores: benchmarks/README.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sightline._keras.graphs import list_layers


def use_fused_kernels(model: Any) -> None:
    """Patch the layers of a Keras `model` in place to train with fused kernels; does nothing on other backends.

    *Batch normalization* over the channels of a feature map becomes one operation forward and one backward, in the
    dtype of its input. Keras uses a dozen operations that each read the whole map, and casts bfloat16 to float32 first.
    *Strided depthwise convolutions* run in float32 even in a bfloat16 model: their backward pass in oneDNN is slow, and
    the four in MobileNetV2 took a quarter of a step.
    """
    import keras

    if keras.backend.backend() != "tensorflow":
        return
    for layer in list_layers(model):
        if isinstance(layer, keras.layers.BatchNormalization):
            if layer.axis in (-1, 3) and not layer.renorm and layer.compute_dtype in ("float32", "bfloat16", "float16"):
                layer.call = _make_fused_call(layer, layer.call)
        elif must_stay_float32(layer):
            layer.dtype_policy = "float32"


def must_stay_float32(layer: Any) -> bool:
    """Return whether a layer is a strided depthwise convolution on TensorFlow; see `use_fused_kernels`."""
    import keras

    is_depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
    return keras.backend.backend() == "tensorflow" and is_depthwise and max(layer.strides) > 1


def _make_fused_call(layer: Any, keras_call: Callable[..., Any]) -> Callable[..., Any]:
    """Return a fused ``layer.call``.

    It falls back to `keras_call` except when training on unmasked 4-D feature maps.
    """
    import tensorflow as tf

    def call(inputs: Any, training: bool | None = None, mask: Any = None) -> Any:  # noqa: FBT001  # as Keras has it
        if not (training and layer.trainable) or layer.synchronized or mask is not None or len(inputs.shape) != 4:
            return keras_call(inputs, training=training, mask=mask)
        channels = inputs.shape[-1]
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=tf.convert_to_tensor(layer.gamma) if layer.scale else tf.ones(channels),
            offset=tf.convert_to_tensor(layer.beta) if layer.center else tf.zeros(channels),
            mean=tf.zeros([0]),
            variance=tf.zeros([0]),
            epsilon=layer.epsilon,
            is_training=True,
        )
        count = tf.cast(tf.size(inputs) // channels, tf.float32)
        variance *= (count - 1) / count  # the kernel returns the sample variance; Keras keeps the population variance
        for moving_stat, batch_stat in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
            moving_stat.assign(moving_stat * layer.momentum + batch_stat * (1 - layer.momentum))
        return outputs

    return call


def use_fused_adam(adam: Any) -> None:
    """Patch a Keras Adam or AdamW in place to update each variable with one TensorFlow operation.

    Keras uses a dozen operations, each of which reads the whole variable: this takes a twentieth of a step for VGG16's
    134 million weights, and a third of the first step's compilation for the many small variables of MobileNetV2.
    Keras still handles AMSGrad, sparse gradients and variables shared by several devices.
    """
    import keras

    if keras.backend.backend() != "tensorflow" or adam.amsgrad:
        return
    import tensorflow as tf

    keras_update_step = adam.update_step

    def update_step(gradient: Any, variable: Any, learning_rate: Any) -> None:
        if tf.distribute.has_strategy() or isinstance(gradient, tf.IndexedSlices):
            keras_update_step(gradient, variable, learning_rate)
            return
        index = adam._get_variable_index(variable)  # as in Keras' own update_step
        step = tf.cast(adam.iterations.value + 1, variable.dtype)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=adam._momentums[index].value.handle,
            v=adam._velocities[index].value.handle,
            beta1_power=tf.constant(adam.beta_1, variable.dtype) ** step,
            beta2_power=tf.constant(adam.beta_2, variable.dtype) ** step,
            lr=tf.cast(learning_rate, variable.dtype),
            beta1=adam.beta_1,
            beta2=adam.beta_2,
            epsilon=adam.epsilon,
            grad=tf.cast(gradient, variable.dtype),
        )

    adam.update_step = update_step
