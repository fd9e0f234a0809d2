"""The pass of frozen EfficientNet-Lite0 layers over photographs at 224x224, by engine, batch size and threads.

`sightline train` takes ONNX Runtime in float32, 32 images at a time, one thread for each core. OpenVINO is measured
where it is installed, in bfloat16 too if the processor has the instructions. ``--accuracy`` prints what a linear
head on the features of each engine gets right: cross-validated on two sets, compared with float32 on the same images.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from measure import SHARED, Variant, compare, describe_machine

from sightline import process

SIDE, BATCH, CORES = 224, 32, process.count_cores()
COUNT = 256
Features = Callable[[Any], Any]


def build_graph() -> bytes:
    """Return the ONNX file of the frozen layers, from uint8 pixels to 1,280 features."""
    from sightline import backend
    from sightline.config import resolve_config
    from sightline.export import keras_to_onnx
    from sightline.models import pretrained, registry
    from sightline.models.build import ModelSpec, build_model

    config = resolve_config(assignments=["model.name=efficientnet-lite0", "model.weights=imagenet"])
    weights = pretrained.find_weights(registry.get_entry("efficientnet-lite0"), "imagenet", 1.0, SIDE, SIDE)
    network = build_model(ModelSpec(config.model, SIDE, SIDE, 3, 2, weights=weights))
    model = backend.keras().Model(network.model.inputs, network.model.output["features"])
    return keras_to_onnx.convert_layers(model)


def load_pixels(name: str, count: int | None = None) -> tuple[Any, Any]:
    """Return `count` images of a set spread over its classes, decoded to uint8 [N, 224, 224, 3], and their labels."""
    from sightline.data.indexing import build_index
    from sightline.preprocessing import PreprocessingSpec

    source = SHARED / "data" / name
    images = build_index(source).images
    images = images[:: max(1, len(images) // count)][:count] if count else images
    spec = PreprocessingSpec(SIDE, SIDE, resize="crop")
    pixels = np.stack([spec.decode((source / image.path).read_bytes()) for image in images])
    return pixels, np.unique([image.label for image in images], return_inverse=True)[1]


def open_onnx_runtime(graph: bytes, threads: int) -> Features:
    """Return the graph as a function, run by ONNX Runtime."""
    from sightline.inference.runtimes.onnx_sessions import create_session

    session = create_session(graph, threads)
    return lambda pixels: session.run(None, {"pixels": pixels})[0]


def open_openvino(graph: bytes, threads: int, precision: str) -> Features:
    """Return the graph as a function, run by OpenVINO in "f32" or "bf16"."""
    import openvino

    core = openvino.Core()
    options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    compiled = core.compile_model(core.read_model(graph), "CPU", options)
    return lambda pixels: compiled(pixels)[0]


def open_int8(graph: bytes, threads: int, pixels: Any) -> Features:
    """Return the graph quantized with ONNX Runtime's tools, calibrated on `pixels`, as a function."""
    import tempfile
    from pathlib import Path

    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]  # has no types
        def __init__(self) -> None:
            self.batches = iter([{"pixels": pixels[i : i + 8]} for i in range(0, 64, 8)])

        def get_next(self) -> Any:
            return next(self.batches, None)

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in.onnx"), Path(folder, "out.onnx")
        source.write_bytes(graph)
        quantization.quant_pre_process(source, source, skip_symbolic_shape=True)
        quantization.quantize_static(source, target, Reader(), per_channel=True, reduce_range=False)
        return open_onnx_runtime(target.read_bytes(), threads)


def open_keras(precision: str) -> Features:
    """Return the Keras model as a compiled function."""
    from sightline import backend
    from sightline.config import resolve_config
    from sightline.models import pretrained, registry
    from sightline.models.build import ModelSpec, build_model

    config = resolve_config(assignments=["model.name=efficientnet-lite0", "model.weights=imagenet"])
    weights = pretrained.find_weights(registry.get_entry("efficientnet-lite0"), "imagenet", 1.0, SIDE, SIDE)
    network = build_model(ModelSpec(config.model, SIDE, SIDE, 3, 2, weights=weights, precision=precision))
    backend.set_threads(CORES)
    model = backend.keras().Model(network.model.inputs, network.model.output["features"])
    return lambda pixels: np.asarray(model.predict_on_batch(pixels))


def measure_speed(open_engine: Callable[[Any], Features], batch: int) -> float:
    """Return images/s over `COUNT` decoded photographs, after one batch."""
    pixels, _ = load_pixels("cats_vs_dogs", COUNT)
    run = open_engine(pixels)
    run(pixels[:batch])
    started = time.perf_counter()
    for start in range(0, len(pixels), batch):
        run(pixels[start : start + batch])
    return len(pixels) / (time.perf_counter() - started)


def list_engines() -> dict[str, Callable[[Any], Features]]:
    """Return the engines that are installed, each as a function of some images, with all cores."""
    engines: dict[str, Callable[[Any], Features]] = {
        "ONNX Runtime, float32": lambda _: open_onnx_runtime(build_graph(), CORES),
        "ONNX Runtime, int8": lambda pixels: open_int8(build_graph(), CORES, pixels),
        "Keras, float32": lambda _: open_keras("float32"),
        "Keras, bfloat16": lambda _: open_keras("mixed_bfloat16"),
    }
    if importlib.util.find_spec("openvino"):
        engines["OpenVINO, float32"] = lambda _: open_openvino(build_graph(), CORES, "f32")
        if "avx512_bf16" in describe_machine():
            engines["OpenVINO, bfloat16"] = lambda _: open_openvino(build_graph(), CORES, "bf16")
    return engines


def list_variants() -> dict[str, Variant]:
    """Return every engine at the batch size of `train`, and ONNX Runtime at others and with one thread."""
    variants: dict[str, Variant] = {
        name: partial(measure_speed, open_engine, BATCH) for name, open_engine in list_engines().items()
    }
    for batch in (1, 8, 64):
        name = f"ONNX Runtime, float32, {batch} images at a time"
        variants[name] = partial(measure_speed, list_engines()["ONNX Runtime, float32"], batch)
    one_thread: Callable[[Any], Features] = lambda _: open_onnx_runtime(build_graph(), 1)  # noqa: E731
    variants["ONNX Runtime, float32, one thread"] = partial(measure_speed, one_thread, BATCH)
    return variants


def print_accuracy() -> None:
    """Print the cross-validated accuracy of a head on the features of each engine, and the paired test."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from sightline.evaluation.paired import compare_paired

    for name, count in (("cats_vs_dogs", None), ("flowers5", 1500)):
        pixels, labels = load_pixels(name, count)
        reference: Any = None
        print(f"\n{name}, {len(pixels)} images\n")
        for engine, open_engine in list_engines().items():
            run = open_engine(pixels)
            features = np.concatenate([run(pixels[start : start + BATCH]) for start in range(0, len(pixels), BATCH)])
            head = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
            correct = cross_val_predict(head, features, labels, cv=5) == labels
            reference = correct if reference is None else reference
            compared = compare_paired(reference, correct)
            print(
                f"{engine}: {correct.mean():.4f}, {compared.difference:+.4f} (p = {compared.p_value:.2f})", flush=True
            )


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if "--accuracy" in sys.argv:
        print_accuracy()
    else:
        compare(f"Features of {COUNT} photographs at {SIDE}x{SIDE} by frozen EfficientNet-Lite0", list_variants())
