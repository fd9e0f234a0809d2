"""The one place that imports ONNX Runtime and OpenVINO: what their own telemetry would do is turned off before.

When it is imported, ONNX Runtime 1.31 writes a device id below the home folder and asks for its telemetry host, unless
``ORT_DISABLE_TELEMETRY`` is set by then; OpenVINO 2026 sends an event and writes ``~/intel``, unless its package
`openvino_telemetry` is missing.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from sightline.errors import require


def onnx_runtime(module: str = "onnxruntime") -> Any:
    """Import and return ONNX Runtime, or a `module` of it; whoever set ``ORT_DISABLE_TELEMETRY`` before has the say."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return importlib.import_module(module)


def openvino() -> Any:
    """Import and return OpenVINO, without its telemetry unless that is imported already.

    Raises `MissingExtraError` if it is not installed.
    """
    telemetry = "openvino_telemetry"
    hidden = telemetry not in sys.modules
    if hidden:
        sys.modules[telemetry] = None  # type: ignore[assignment]  # what makes its import fail, so that a stub is taken
    try:
        package = require("openvino", "The format openvino")
        importlib.import_module("openvino.tools.ovc.convert_impl")  # imported later otherwise, with telemetry
    finally:
        if hidden:
            del sys.modules[telemetry]
    return package
