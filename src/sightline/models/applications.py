"""Backbones of `keras.applications`, laid flat into our graph so that each layer can be seen, frozen or cut.

All without top and without preprocessing of their own: normalised pixels [N, H, W, C] in, feature maps out.
"""

from __future__ import annotations

from typing import Any

from sightline import backend
from sightline.models.scopes import no_values


def resnet50(x: Any) -> Any:
    """Residual blocks in four stages, to 1/32 of the side and 2048 maps."""
    return _flat("ResNet50", x)


def xception(x: Any) -> Any:
    """Depthwise separable convolutions with residual connections; 2048 maps."""
    return _flat("Xception", x)


def inceptionv3(x: Any) -> Any:
    """Towers of factorised convolutions side by side; 2048 maps."""
    return _flat("InceptionV3", x)


def densenet121(x: Any) -> Any:
    """Each layer sees the maps of all before it in its block; 1024 maps."""
    return _flat("DenseNet121", x)


def mobilenet(x: Any, alpha: float) -> Any:
    """Depthwise separable convolutions; `alpha` scales the width of each layer."""
    return _flat("MobileNet", x, alpha=alpha)


def mobilenetv2(x: Any, alpha: float) -> Any:
    """MobileNetV2; `alpha` scales the width of each layer (0.35: 410,208 parameters)."""
    return _flat("MobileNetV2", x, alpha=alpha)


def mobilenetv3_small(x: Any, alpha: float) -> Any:
    """MobileNetV3 for the smallest devices; 576 maps."""
    return _flat("MobileNetV3Small", x, alpha=alpha, include_preprocessing=False)


def mobilenetv3_large(x: Any, alpha: float) -> Any:
    """MobileNetV3 for phones; 960 maps."""
    return _flat("MobileNetV3Large", x, alpha=alpha, include_preprocessing=False)


def efficientnetv2b0(x: Any) -> Any:
    """Fused and plain inverted residual blocks; 1280 maps."""
    return _flat("EfficientNetV2B0", x, include_preprocessing=False)


def nasnetmobile(x: Any) -> Any:
    """Cells found by search; 1056 maps.

    Keras names its weights by the scopes that they were made in, which a loaded copy does not have.
    """
    return _copied("NASNetMobile", x)


def efficientnetb0(x: Any) -> Any:
    """Inverted residual blocks with squeeze and excitation; 1280 maps.

    Keras builds its preprocessing in and has no switch for it.
    """
    return _copied("EfficientNetB0", x, after=backend.keras().layers.Normalization)


def _flat(name: str, x: Any, **options: Any) -> Any:
    make = getattr(backend.keras().applications, name)
    return make(input_tensor=x, include_top=False, weights=None, **options).output


def _copied(name: str, x: Any, after: Any = None) -> Any:
    """Lay a copy of each layer upon `x`: of all, or of those that follow the one of the type `after`."""
    keras = backend.keras()
    with no_values():
        whole = getattr(keras.applications, name)(input_shape=x.shape[1:], include_top=False, weights=None)
    start = whole.input if after is None else next(la for la in whole.layers if isinstance(la, after)).output
    return keras.models.clone_model(keras.Model(start, whole.output), input_tensors=x).layers[-1].output
