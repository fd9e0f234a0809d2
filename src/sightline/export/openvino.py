"""Convert an exported ONNX file to OpenVINO IR: ``model.xml`` and ``model.bin``."""

from __future__ import annotations

import io
from pathlib import Path

from sightline._keras import imports

MODEL_FILE, WEIGHTS_FILE = "model.xml", "model.bin"


def export_openvino(onnx_bytes: bytes, folder: Path, *, float16: bool = False, manifest: str = "") -> None:
    """Convert the ONNX file `onnx_bytes` to OpenVINO IR in `folder`; `float16` stores the weights as float16.

    `manifest` is stored in the file as the runtime information ``sightline``. Raises `MissingExtraError`.
    """
    openvino = imports.import_openvino()
    model = openvino.convert_model(io.BytesIO(onnx_bytes))
    model.set_rt_info(manifest, ["sightline"])
    openvino.save_model(model, folder / MODEL_FILE, compress_to_fp16=float16)
