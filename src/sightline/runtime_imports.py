"""Import ONNX Runtime and OpenVINO with telemetry disabled; no other module imports them.

On import, ONNX Runtime 1.31 writes a device id below the home folder and resolves its telemetry host, unless
``ORT_DISABLE_TELEMETRY`` is set; OpenVINO 2026 sends an event and writes ``~/intel``, unless its package
`openvino_telemetry` is missing.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from sightline.errors import require


def import_onnx_runtime(module: str = "onnxruntime") -> Any:
    """Import and return ONNX Runtime, or a `module` of it; respects ``ORT_DISABLE_TELEMETRY`` if already set."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return importlib.import_module(module)


def import_openvino() -> Any:
    """Import and return OpenVINO, without its telemetry unless that is already imported.

    Raises `MissingExtraError` if it is not installed.
    """
    telemetry = "openvino_telemetry"
    hides_telemetry = telemetry not in sys.modules
    if hides_telemetry:
        sys.modules[telemetry] = None  # type: ignore[assignment]  # makes its import fail, so that OpenVINO uses a stub
    try:
        package = require("openvino", "The format openvino")
        importlib.import_module("openvino.tools.ovc.convert_impl")  # otherwise imported later, with telemetry
    finally:
        if hides_telemetry:
            del sys.modules[telemetry]
    return package
