"""Run frozen layers: through ONNX Runtime if its results agree with those of Keras, else through Keras.

For MobileNetV2 on a CPU, ONNX Runtime takes half the time (benchmarks/README.md) and agrees to within 1e-5.
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

ROWS = 32  # batch size
SAMPLE = 8  # rows on which both are compared
TOLERANCE = 1e-4  # relative to the largest absolute value


@dataclass(frozen=True, slots=True)
class Layers:
    """`run` maps up to `ROWS` rows to float32 [n, ...]; `made_by` determines its results, None if unknown."""

    run: Callable[[NDArray[Any]], NDArray[np.float32]]
    made_by: tuple[bytes | str | int, ...] | None


def layers(
    model: Any, sample: NDArray[Any], engine: str, threads: int, by_keras: Callable[[NDArray[Any]], Any] | None = None
) -> Layers:
    """Return the Keras `model`, which has one input and one output, as a function.

    With `engine` "keras", `by_keras` computes `ROWS` rows, by default the model's own `predict_on_batch`. Otherwise
    ONNX Runtime does, if it supports every layer and agrees with Keras on `sample`, some input rows. The choice never
    depends on timing, so that a resumed run repeats it.
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
    """Return whether the results of `run` for `rows` agree with those of the Keras `model`."""
    with backend.full_precision():
        expected = backend.keras().ops.convert_to_numpy(model(rows, training=False)).astype(np.float32)
    return bool(np.abs(run(rows) - expected).max() <= TOLERANCE * max(float(np.abs(expected).max()), 1e-6))
