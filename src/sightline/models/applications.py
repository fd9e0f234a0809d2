"""Backbones from `keras.applications`, inlined into our graph so that each layer can be inspected, frozen or cut.

They have neither a top nor preprocessing: normalized pixels [N, H, W, C] in, feature maps out.
"""

from __future__ import annotations

from typing import Any

from sightline import backend
from sightline._keras.graphs import shapes_only


def resnet50(x: Any) -> Any:
    """Apply ResNet50: residual blocks in four stages; output stride 32, 2048 channels."""
    return _inline_application("ResNet50", x)


def xception(x: Any) -> Any:
    """Apply Xception: depthwise separable convolutions with residual connections; 2048 channels."""
    return _inline_application("Xception", x)


def inceptionv3(x: Any) -> Any:
    """Apply InceptionV3: parallel towers of factorized convolutions; 2048 channels."""
    return _inline_application("InceptionV3", x)


def densenet121(x: Any) -> Any:
    """Apply DenseNet121: each layer sees the output of every earlier layer of its block; 1024 channels."""
    return _inline_application("DenseNet121", x)


def mobilenet(x: Any, alpha: float) -> Any:
    """Apply MobileNet: depthwise separable convolutions; `alpha` scales the width of each layer."""
    return _inline_application("MobileNet", x, alpha=alpha)


def mobilenetv2(x: Any, alpha: float) -> Any:
    """Apply MobileNetV2; `alpha` scales the width of each layer (0.35: 410,208 parameters)."""
    return _inline_application("MobileNetV2", x, alpha=alpha)


def mobilenetv3_small(x: Any, alpha: float) -> Any:
    """Apply MobileNetV3-Small; 576 channels."""
    return _inline_application("MobileNetV3Small", x, alpha=alpha, include_preprocessing=False)


def mobilenetv3_large(x: Any, alpha: float) -> Any:
    """Apply MobileNetV3-Large; 960 channels."""
    return _inline_application("MobileNetV3Large", x, alpha=alpha, include_preprocessing=False)


def efficientnetv2b0(x: Any) -> Any:
    """Apply EfficientNetV2-B0: fused and plain inverted residual blocks; 1280 channels."""
    return _inline_application("EfficientNetV2B0", x, include_preprocessing=False)


def nasnetmobile(x: Any) -> Any:
    """Apply NASNetMobile: cells found by architecture search; 1056 channels.

    It is cloned because Keras names its weights after the scopes where they were created, which a loaded copy lacks.
    """
    return _clone_application("NASNetMobile", x)


def efficientnetb0(x: Any) -> Any:
    """Apply EfficientNetB0: inverted residual blocks with squeeze-and-excitation; 1280 channels.

    It is cloned from after its preprocessing, which Keras builds in with no option to leave it out.
    """
    return _clone_application("EfficientNetB0", x, after=backend.keras().layers.Normalization)


def _inline_application(name: str, x: Any, **options: Any) -> Any:
    constructor = getattr(backend.keras().applications, name)
    return constructor(input_tensor=x, include_top=False, weights=None, **options).output


def _clone_application(name: str, x: Any, after: Any = None) -> Any:
    """Apply a copy of each layer to `x`: of all layers, or of those that follow the first layer of type `after`."""
    keras = backend.keras()
    with shapes_only():
        full_model = getattr(keras.applications, name)(input_shape=x.shape[1:], include_top=False, weights=None)
    clone_input = (
        full_model.input
        if after is None
        else next(layer for layer in full_model.layers if isinstance(layer, after)).output
    )
    return keras.models.clone_model(keras.Model(clone_input, full_model.output), input_tensors=x).layers[-1].output
