"""Run frozen layers in OpenVINO or ONNX Runtime if the results agree with Keras', otherwise in Keras.

For EfficientNet-Lite0 on two cores, ONNX Runtime takes half the time of Keras, and in int8 between a third and a
fifth, with an equally good linear head on the features (benchmarks/results/features.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from importlib import metadata
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import backend, process
from sightline._keras import imports, training_steps
from sightline.data.batches import iterate_slices
from sightline.data.types import Subset
from sightline.errors import MissingExtraError, ModelError
from sightline.export import keras_to_onnx, quantize
from sightline.inference.predictor import Streams
from sightline.inference.runner import call_padded, choose_streams
from sightline.inference.runtimes.onnx_sessions import create_session

BATCH_SIZE = 32  # rows passed to `run` at a time
SAMPLE_ROWS = 4  # rows on which the engine and Keras are compared
KERAS_ROWS = 2  # of these at once in Keras, 1 if memory is short: outside a compiled model, Keras keeps all outputs
RELATIVE_TOLERANCE = 1e-4  # relative to the largest absolute value
BFLOAT16_TOLERANCE = 0.05  # the same for OpenVINO in bfloat16, which has 8 bits of precision
INT8_TOLERANCE = 0.25  # root mean square error relative to the features' standard deviation; EfficientNet-Lite0: 0.09
CALIBRATION_IMAGES = 16
MIN_INT8_IMAGES = 500  # for fewer, quantizing the layers can take longer than it saves

Run = Callable[[NDArray[Any]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class FrozenLayers:
    """`run` maps up to `BATCH_SIZE` rows to float32 [n, ...]; `cache_key` determines its results, None if unknown.

    `fallback_reason` explains why Keras runs them although another engine was requested; "" if that is not the case.
    `exact` runs them in float32 if `run` does not: validation needs the exact outputs of the model. `keras_model` is
    the model if Keras runs them. With `streams`, several threads may call `run` at once.
    """

    run: Run
    cache_key: tuple[bytes | str | int, ...] | None
    fallback_reason: str = ""
    exact: FrozenLayers | None = None
    keras_model: Any = None
    streams: Streams | None = None


def build_frozen_layers(
    model: Any,
    sample: NDArray[Any],
    engine: str,
    threads: int,
    keras_function: Callable[[NDArray[Any]], Any] | None = None,
    calibration: NDArray[np.uint8] | None = None,
) -> FrozenLayers:
    """Return the Keras `model`, with one input and one output, as a function.

    With `engine` "keras", `keras_function` runs `BATCH_SIZE` rows, by default the model's own `predict_on_batch`.
    Otherwise "onnxruntime" or "openvino" runs them if it supports every layer and agrees with Keras on the input rows
    `sample`; if not, Keras does, and the result states why. OpenVINO may be less precise, so its `exact` is ONNX
    Runtime, as it is with images for `calibration`: see `open_int8`. The choice never depends on timing, so that a
    resumed run makes the same one.
    """
    keras_call = keras_function or partial(training_steps.predict_on_batch, model)
    keras_layers = FrozenLayers(lambda rows: call_padded(keras_call, rows, BATCH_SIZE), None, keras_model=model)
    if engine == "keras" or not len(sample):
        return keras_layers
    try:
        onnx_model = keras_to_onnx.convert_layers(model)
        layers = open_onnxruntime(onnx_model, sample.shape[1:], threads)
        lossy_layers = _open_openvino(onnx_model, threads) if engine == "openvino" else None
    except (MissingExtraError, ModelError) as error:
        title = "OpenVINO" if engine == "openvino" else "ONNX Runtime"
        return replace(keras_layers, fallback_reason=f"{title} cannot: {error}")
    if not outputs_agree(model, layers.run, sample[:SAMPLE_ROWS]):
        return replace(keras_layers, fallback_reason="those of ONNX Runtime differ")
    if lossy_layers is None:
        return layers if calibration is None else open_int8(onnx_model, layers, calibration, threads)
    if not outputs_agree(model, lossy_layers.run, sample[:SAMPLE_ROWS], BFLOAT16_TOLERANCE):
        return replace(keras_layers, fallback_reason="those of OpenVINO differ")
    return replace(lossy_layers, exact=layers)


def _has_bfloat16(core: Any) -> bool:
    return "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def open_onnxruntime(onnx_model: bytes, shape: Sequence[int], threads: int) -> FrozenLayers:
    """Return an ONNX file as a function of inputs of `shape`; several calls may run at once, see `Streams`."""
    streams = choose_streams(shape, threads)
    session = create_session(onnx_model, streams.threads)

    def run_rows(rows: NDArray[Any]) -> NDArray[np.float32]:
        outputs: NDArray[np.float32] = session.run(["out"], {"pixels": np.ascontiguousarray(rows)})[0]
        return outputs

    def run(rows: NDArray[Any]) -> NDArray[np.float32]:
        return _run_in_batches(run_rows, rows, streams.rows)

    return FrozenLayers(run, make_cache_key(onnx_model, shape, threads), streams=streams)


def make_cache_key(
    onnx_model: bytes, shape: Sequence[int], threads: int, calibration: NDArray[np.uint8] | None = None
) -> tuple[bytes | str | int, ...]:
    """Return what determines the results of `open_onnxruntime`, or of `open_int8` with images for `calibration`."""
    version, streams = imports.import_onnx_runtime().__version__, choose_streams(shape, threads)
    key = (onnx_model, "onnxruntime", version, threads, streams.rows)
    return key if calibration is None else (*key, "int8", calibration.tobytes())


def choose_calibration(engine: str, train: Subset) -> NDArray[np.uint8] | None:
    """Return the images for calibrating int8 layers, uint8 [n, H, W, C]; None to use float32."""
    if engine != "onnxruntime-int8" or len(train) < MIN_INT8_IMAGES or train.pixels.dtype != np.uint8:
        return None
    images: NDArray[np.uint8] = train.sample_evenly(CALIBRATION_IMAGES).take(slice(None))
    return images


def open_int8(onnx_model: bytes, exact: FrozenLayers, images: NDArray[np.uint8], threads: int) -> FrozenLayers:
    """Return an ONNX file in int8, calibrated on `images` [n, H, W, C], whose float32 layers are `exact`.

    Quantization happens at the first run, so never if all features are cached. If the results differ much from those
    of `exact`, `exact` is used instead.
    """
    lock, runs = Lock(), list[Run]()

    def run(rows: NDArray[Any]) -> NDArray[np.float32]:
        with lock:
            if not runs:
                runs.append(_open_if_close(onnx_model, exact, images, threads).run)
        return runs[0](rows)

    return replace(exact, run=run, cache_key=make_cache_key(onnx_model, images.shape[1:], threads, images), exact=exact)


def _open_if_close(onnx_model: bytes, exact: FrozenLayers, images: NDArray[np.uint8], threads: int) -> FrozenLayers:
    file = _quantize(onnx_model, images.tobytes(), images.shape)
    layers = open_onnxruntime(file, images.shape[1:], threads)
    expected = exact.run(images[:SAMPLE_ROWS])
    error = float(np.sqrt(np.mean((layers.run(images[:SAMPLE_ROWS]) - expected) ** 2)))
    return layers if error <= INT8_TOLERANCE * float(expected.std()) else exact


@lru_cache(maxsize=1)  # early features and training quantize the same layers
def _quantize(onnx_model: bytes, pixels: bytes, shape: tuple[int, ...]) -> bytes:
    return quantize.calibrate_graph(onnx_model, np.frombuffer(pixels, np.uint8).reshape(shape)).quantize()


def _open_openvino(onnx_model: bytes, threads: int) -> FrozenLayers:
    """Return an ONNX file in OpenVINO, in bfloat16 if the processor has the instructions, else in float32."""
    core = imports.import_openvino().Core()
    precision = "bf16" if _has_bfloat16(core) else "f32"
    options = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    try:
        compiled = core.compile_model(
            core.read_model(onnx_model), "CPU", options | ({"INFERENCE_NUM_THREADS": threads} if threads else {})
        )
    except RuntimeError as error:
        raise ModelError(str(error).splitlines()[0]) from error

    def run(rows: NDArray[Any]) -> NDArray[np.float32]:
        outputs: NDArray[np.float32] = np.array(compiled(np.ascontiguousarray(rows))[0], np.float32)
        return outputs

    return FrozenLayers(run, (onnx_model, "openvino", metadata.version("openvino"), precision, threads))


def _run_in_batches(function: Run, rows: NDArray[Any], size: int) -> NDArray[np.float32]:
    return np.concatenate([function(rows[positions]) for positions in iterate_slices(len(rows), size)])


def outputs_agree(model: Any, run: Run, rows: NDArray[Any], tolerance: float = RELATIVE_TOLERANCE) -> bool:
    """Return whether the results of `run` for `rows` [n, ...] agree with those of the Keras `model`."""
    to_numpy = backend.keras().ops.convert_to_numpy
    with backend.full_precision():
        size = 1 if process.is_memory_short() else KERAS_ROWS
        expected = _run_in_batches(lambda inputs: to_numpy(model(inputs, training=False)), rows, size)
    expected = expected.astype(np.float32)
    return bool(np.abs(run(rows) - expected).max() <= tolerance * max(float(np.abs(expected).max()), 1e-6))
