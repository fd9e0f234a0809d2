"""The formats and precisions of `export`: what each needs, and how much its outputs may differ."""

from __future__ import annotations

from typing import Literal

from sightline.inference.parity import Tolerance

ExportFormat = Literal["onnx", "bundle", "openvino", "litert", "saved_model"]
ExportPrecision = Literal["float32", "bfloat16", "float16", "int8"]
PRECISIONS: dict[str, tuple[str, ...]] = {
    "onnx": ("float32", "bfloat16", "float16", "int8"),
    "bundle": ("float32", "bfloat16", "float16", "int8"),
    "openvino": ("float32", "float16", "int8"),
    "litert": ("float32",),
    "saved_model": ("float32",),
}
"""The precisions that each format supports."""

KERAS_FORMATS = frozenset({"litert", "saved_model"})  # exported from the Keras model on TensorFlow, in float32 only

PACKAGES: dict[str, tuple[str, ...]] = {
    "onnx": (), "bundle": (), "openvino": ("openvino",), "litert": ("ai_edge_litert", "tensorflow"),
    "saved_model": ("tensorflow",),
}  # fmt: skip
"""The packages that each format needs, in float32."""

TOLERANCES: dict[str, Tolerance] = {
    "float32": Tolerance(),
    "float16": Tolerance(0.05, 0.98),
    "bfloat16": Tolerance(0.1, 0.97),
    "int8": Tolerance(0.5, 0.97),
}
"""How much the outputs of a file may differ from the model's.

float32 differs only in the order of additions. A float16 weight has 11 significant bits and a relative error of at most
0.02%, a bfloat16 weight has 8 and at most 0.2%. The largest differences measured on photographs were 0.013 and 0.061,
the lowest agreements 0.997 and 0.987 (docs/export.md); a faulty file, such as one with red and blue swapped, differs by
0.28 or more. The agreement limits allow for small validation splits, where a single near tie is 1%. int8 also rounds
activations, and may keep layers in float to meet the limits.
"""
