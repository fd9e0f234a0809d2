"""What the models of a server compute."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sightline.inference.runtimes.onnx import OnnxPredictor


@pytest.fixture
def model_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The images and the threads of each call of a model by the server, in order."""
    calls: list[tuple[int, int]] = []
    run = OnnxPredictor._run

    def record(self: OnnxPredictor, names: Any, pixels: NDArray[np.uint8]) -> list[Any]:
        if threading.current_thread().name.startswith("model"):  # not one that verifies the file
            calls.append((len(pixels), self._threads))
        return run(self, names, pixels)

    monkeypatch.setattr(OnnxPredictor, "_run", record)
    return calls
