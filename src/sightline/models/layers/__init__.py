"""Descriptions of layer types, each with everything that other packages need to know about the type.

`layer_type` defines a description. Each of the other modules describes a family of Keras layers. Third-party packages
add types with `register_layer`.
"""

from sightline.models.layers import activations, arithmetic, normalizations, shapes, windows
from sightline.models.layers.layer_type import (
    LAYER_TYPES,
    ChannelFlow,
    LayerType,
    Role,
    Window,
    get_layer_type,
    is_kernel,
    register_layer,
)

__all__ = [
    "LAYER_TYPES",
    "ChannelFlow",
    "LayerType",
    "Role",
    "Window",
    "activations",
    "arithmetic",
    "get_layer_type",
    "is_kernel",
    "normalizations",
    "register_layer",
    "shapes",
    "windows",
]
