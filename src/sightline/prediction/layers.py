"""Layers that do not learn as a function of rows: through ONNX Runtime where it answers the same, else through Keras.

ONNX Runtime takes half of the time for MobileNetV2 on a CPU (benchmarks/README.md) and answers to within 1e-5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import backend
from sightline.errors import MissingExtraError, ModelError
from sightline.export import onnx
from sightline.prediction.base import filled
from sightline.prediction.onnx import session

ROWS = 32  # rows that go through the layers at once
SAMPLE = 8  # rows on which both ways are compared
TOLERANCE = 1e-4  # of the greatest value there


@dataclass(frozen=True, slots=True)
class Layers:
    """`run` maps up to `ROWS` rows to float32 [n, ...]; `made_by` is all that decides its answers, None if unknown."""

    run: Callable[[NDArray[Any]], NDArray[np.float32]]
    made_by: tuple[bytes | str | int, ...] | None


def layers(
    model: Any, sample: NDArray[Any], engine: str, threads: int, by_keras: Callable[[NDArray[Any]], Any] | None = None
) -> Layers:
    """Return the Keras `model`, which has one input and one output, as a function.

    `engine` "keras" leaves it to Keras, which means to `by_keras` of `ROWS` rows, by default the model's own
    `predict_on_batch`; otherwise ONNX Runtime computes, if it knows each layer and its answers to
    `sample`, some rows to be fed, are those of Keras. The choice never depends on time, so that a resumed run takes it
    again.
    """
    call = by_keras or model.predict_on_batch
    plain = Layers(lambda rows: filled(call, rows, ROWS), None)
    if engine != "keras" and len(sample):
        try:
            file = onnx.convert_layers(model)
            through = session(file, threads)
        except (MissingExtraError, ModelError):
            return plain

        def run(rows: NDArray[Any]) -> NDArray[np.float32]:
            found: NDArray[np.float32] = through.run(["out"], {"pixels": np.ascontiguousarray(rows)})[0]
            return found

        if agree(model, run, sample[:SAMPLE]):
            return Layers(run, (file, "onnxruntime", metadata.version("onnxruntime"), threads))
    return plain


def agree(model: Any, run: Callable[[NDArray[Any]], NDArray[np.float32]], rows: NDArray[Any]) -> bool:
    """Tell whether `run` answers to `rows` as the Keras `model` does."""
    with backend.full_precision():
        expected = backend.keras().ops.convert_to_numpy(model(rows, training=False)).astype(np.float32)
    return bool(np.abs(run(rows) - expected).max() <= TOLERANCE * max(float(np.abs(expected).max()), 1e-6))
