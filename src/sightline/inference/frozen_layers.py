"""Run frozen layers: through ONNX Runtime if its results agree with those of Keras, else through Keras.

For MobileNetV2 on a CPU, ONNX Runtime takes half the time (benchmarks/README.md) and agrees to within 1e-5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import backend
from sightline._keras import training_steps
from sightline.errors import MissingExtraError, ModelError
from sightline.export import keras_to_onnx
from sightline.inference.runner import call_padded
from sightline.inference.runtimes.onnx import create_session

BATCH_SIZE = 32  # batch size
SAMPLE_ROWS = 8  # rows on which both are compared
RELATIVE_TOLERANCE = 1e-4  # relative to the largest absolute value


@dataclass(frozen=True, slots=True)
class FrozenLayers:
    """`run` maps up to `BATCH_SIZE` rows to float32 [n, ...]; `cache_key` determines its results, None if unknown.

    `fallback_reason` says why Keras computes them where ONNX Runtime should; "" if it need not.
    """

    run: Callable[[NDArray[Any]], NDArray[np.float32]]
    cache_key: tuple[bytes | str | int, ...] | None
    fallback_reason: str = ""


def build_frozen_layers(
    model: Any,
    sample: NDArray[Any],
    engine: str,
    threads: int,
    keras_function: Callable[[NDArray[Any]], Any] | None = None,
) -> FrozenLayers:
    """Return the Keras `model`, which has one input and one output, as a function.

    With `engine` "keras", `keras_function` computes `BATCH_SIZE` rows, by default the model's own `predict_on_batch`.
    Otherwise ONNX Runtime does, if it supports every layer and agrees with Keras on `sample`, some input rows; if not,
    Keras does, and the result says why. The choice never depends on timing, so that a resumed run repeats it.
    """
    keras_call = keras_function or partial(training_steps.predict_on_batch, model)
    keras_layers = FrozenLayers(lambda rows: call_padded(keras_call, rows, BATCH_SIZE), None)
    if engine == "keras" or not len(sample):
        return keras_layers
    try:
        onnx_model = keras_to_onnx.convert_layers(model)
        onnx_session = create_session(onnx_model, threads)
    except (MissingExtraError, ModelError) as error:
        return replace(keras_layers, fallback_reason=f"ONNX Runtime cannot: {error}")

    def run(rows: NDArray[Any]) -> NDArray[np.float32]:
        outputs: NDArray[np.float32] = onnx_session.run(["out"], {"pixels": np.ascontiguousarray(rows)})[0]
        return outputs

    if not outputs_agree(model, run, sample[:SAMPLE_ROWS]):
        return replace(keras_layers, fallback_reason="those of ONNX Runtime differ")
    return FrozenLayers(run, (onnx_model, "onnxruntime", metadata.version("onnxruntime"), threads))


def outputs_agree(model: Any, run: Callable[[NDArray[Any]], NDArray[np.float32]], rows: NDArray[Any]) -> bool:
    """Return whether the results of `run` for `rows` agree with those of the Keras `model`."""
    with backend.full_precision():
        expected = backend.keras().ops.convert_to_numpy(model(rows, training=False)).astype(np.float32)
    return bool(np.abs(run(rows) - expected).max() <= RELATIVE_TOLERANCE * max(float(np.abs(expected).max()), 1e-6))
