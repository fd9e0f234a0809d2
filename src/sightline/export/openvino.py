"""Convert an exported ONNX file to OpenVINO IR: ``model.xml`` and ``model.bin``."""

from __future__ import annotations

import io
from pathlib import Path

from sightline import runtimes

NAME, WEIGHTS = "model.xml", "model.bin"


def convert(graph: bytes, folder: Path, *, half: bool = False, manifest: str = "") -> None:
    """Convert the ONNX file `graph` to OpenVINO IR in `folder`; `half` stores the weights as float16.

    `manifest` is stored in the file as the runtime information ``sightline``. Raises `MissingExtraError`.
    """
    openvino = runtimes.openvino()
    model = openvino.convert_model(io.BytesIO(graph))
    model.set_rt_info(manifest, ["sightline"])
    openvino.save_model(model, folder / NAME, compress_to_fp16=half)
