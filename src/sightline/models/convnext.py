"""ConvNeXt (Liu et al., 2022, arXiv:2201.03545).

Reimplemented because the version in `keras.applications` nests models in the graph, saves layers that are not public
Keras layers, and uses grouped convolutions, which need XLA on a CPU. This version loads the same weights and gives the
same outputs.
"""

from __future__ import annotations

from typing import Any

from sightline import backend

EPSILON = 1e-6
LAYER_SCALE = 1e-6


def convnext_tiny(x: Any) -> Any:
    """Apply stages of 3, 3, 9 and 3 blocks, 96 to 768 channels; 27,820,128 parameters with the last normalization."""
    layers = backend.keras().layers
    for stage, (width, depth) in enumerate(zip((96, 192, 384, 768), (3, 3, 9, 3), strict=True)):
        if stage == 0:
            x = layers.Conv2D(width, 4, strides=4, name="stem_conv")(x)
            x = layers.LayerNormalization(epsilon=EPSILON, name="stem_norm")(x)
        else:
            x = layers.LayerNormalization(epsilon=EPSILON, name=f"downsample{stage}_norm")(x)
            x = layers.Conv2D(width, 2, strides=2, name=f"downsample{stage}_conv")(x)
        for block in range(depth):
            x = _block(x, width, f"stage{stage}_block{block}")
    return layers.LayerNormalization(epsilon=EPSILON, name="norm")(x)


def _block(x: Any, width: int, name: str) -> Any:
    """Apply a 7x7 depthwise convolution, LayerNorm, 4x expansion, GELU, projection, layer scale and a residual."""
    keras = backend.keras()
    layers = keras.layers
    shortcut = x
    x = layers.DepthwiseConv2D(7, padding="same", name=f"{name}_depthwise")(x)
    x = layers.LayerNormalization(epsilon=EPSILON, name=f"{name}_norm")(x)
    x = layers.Dense(4 * width, name=f"{name}_widen")(x)
    x = layers.Activation("gelu", name=f"{name}_gelu")(x)
    x = layers.Dense(width, name=f"{name}_narrow")(x)
    scale = keras.initializers.Constant(LAYER_SCALE)
    x = layers.EinsumDense("nhwc,c->nhwc", (None, None, width), kernel_initializer=scale, name=f"{name}_scale")(x)
    return layers.Add(name=f"{name}_add")([shortcut, x])
