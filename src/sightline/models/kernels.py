"""Faster ways through TensorFlow's kernels than those that Keras' layers and Adam take; they and their weights stay.

Measured on two cores: benchmarks/README.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sightline import backend


def quicken(model: Any) -> None:
    """Let the layers of a Keras `model` train by the faster kernels, where TensorFlow is the backend.

    *Batch normalisation* over the channels of a feature map becomes one operation forward and one backward, in the
    precision of what it is given. Keras makes a dozen of it, each of which reads the whole map, and turns bfloat16 into
    float32 first. *Strided depthwise convolutions* stay in float32 among bfloat16 layers: oneDNN's backward pass of
    those is slow, and the four of MobileNetV2 took a quarter of a step.
    """
    if backend.name() != "tensorflow":
        return
    layers = backend.keras().layers
    for layer in model._flatten_layers():  # noqa: SLF001  # the only walk that enters nested models
        if isinstance(layer, layers.BatchNormalization):
            if layer.axis in (-1, 3) and not layer.renorm and layer.compute_dtype in ("float32", "bfloat16", "float16"):
                layer.call = _fused(layer, layer.call)
        elif stays_in_float32(layer):
            layer.dtype_policy = "float32"


def stays_in_float32(layer: Any) -> bool:
    """Tell whether a layer is a strided depthwise convolution on TensorFlow; see `quicken`."""
    depthwise = backend.keras().layers.DepthwiseConv2D
    return backend.name() == "tensorflow" and isinstance(layer, depthwise) and max(layer.strides) > 1


def _fused(layer: Any, plain: Callable[..., Any]) -> Callable[..., Any]:
    """Return what `layer` does when called: `plain` unless it learns, by itself, from whole feature maps."""
    tf = backend.tensorflow()

    def call(inputs: Any, training: bool | None = None, mask: Any = None) -> Any:  # noqa: FBT001  # as Keras has it
        if not (training and layer.trainable) or layer.synchronized or mask is not None or len(inputs.shape) != 4:
            return plain(inputs, training=training, mask=mask)
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
        values = tf.cast(tf.size(inputs) // channels, tf.float32)
        variance *= (values - 1) / values  # it is that of a sample, and Keras keeps that of the batch
        for kept, new in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
            kept.assign(kept * layer.momentum + new * (1 - layer.momentum))
        return outputs

    return call


def quicken_adam(adam: Any) -> None:
    """Let a Keras Adam or AdamW, built or not, make each variable's step in one operation on TensorFlow.

    Keras makes a dozen of it, each of which goes through the memory of the whole variable: of VGG16's 134 million
    weights, a twentieth of a step, and for the many small variables of MobileNetV2 a third of the first step's
    compilation. AMSGrad, sparse gradients and variables that several devices share stay Keras'.
    """
    if backend.name() != "tensorflow" or adam.amsgrad:
        return
    tf, plain = backend.tensorflow(), adam.update_step

    def update_step(gradient: Any, variable: Any, learning_rate: Any) -> None:
        if tf.distribute.has_strategy() or isinstance(gradient, tf.IndexedSlices):
            plain(gradient, variable, learning_rate)
            return
        at = adam._get_variable_index(variable)  # noqa: SLF001  # as Keras' own update_step finds them
        step = tf.cast(adam.iterations.value + 1, variable.dtype)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=adam._momentums[at].value.handle,  # noqa: SLF001
            v=adam._velocities[at].value.handle,  # noqa: SLF001
            beta1_power=tf.constant(adam.beta_1, variable.dtype) ** step,
            beta2_power=tf.constant(adam.beta_2, variable.dtype) ** step,
            lr=tf.cast(learning_rate, variable.dtype),
            beta1=adam.beta_1,
            beta2=adam.beta_2,
            epsilon=adam.epsilon,
            grad=tf.cast(gradient, variable.dtype),
        )

    adam.update_step = update_step
