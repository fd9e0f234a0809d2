"""Run the frozen layers of EfficientNet-Lite0 on photographs at 256x256, by engine, batch size and threads.

`sightline train` uses ONNX Runtime with one image at a time on each core: in int8 for at least 500 training images if
the processor has AVX2, else in float32. OpenVINO is measured if it is installed, also in bfloat16 if the processor has
the instructions. ``--accuracy`` prints the accuracy of a linear head that is trained on the features of each engine and
evaluated on features in float32, as computed by a trained model, and on those of the same engine: cross-validated on
two sets, and compared with float32 throughout. ``--accuracy TEXT`` selects the engines whose names contain the text.
The variable SIGHTLINE_BENCHMARK_NETWORK selects another network, such as efficientnet-lite2.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from measure import SHARED, Variant, compare, describe_machine

from sightline import process
from sightline.models import registry

NETWORK = registry.get_entry(os.environ.get("SIGHTLINE_BENCHMARK_NETWORK", "efficientnet-lite0"))
SIDE, BATCH, CORES = NETWORK.pretrained_input_size or NETWORK.input_size, 32, process.count_cores()
COUNT = 256
Features = Callable[[Any], Any]


def build_graph() -> bytes:
    """Return the ONNX file of the frozen layers, from uint8 pixels to 1,280 features."""
    from sightline import backend
    from sightline.config import resolve_config
    from sightline.export import keras_to_onnx
    from sightline.models import pretrained
    from sightline.models.build import ModelSpec, build_model

    config = resolve_config(assignments=[f"model.name={NETWORK.name}", "model.weights=imagenet"])
    weights = pretrained.find_weights(NETWORK, "imagenet", 1.0, SIDE, SIDE)
    network = build_model(ModelSpec(config.model, SIDE, SIDE, 3, 2, weights=weights))
    model = backend.keras().Model(network.model.inputs, network.model.output["features"])
    return keras_to_onnx.convert_layers(model)


def load_pixels(name: str, count: int | None = None) -> tuple[Any, Any]:
    """Return `count` images of a set spread over its classes, decoded to uint8 [N, SIDE, SIDE, 3], and their labels."""
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


def open_batches(threads: int, _: Any) -> Features:
    """Return the network as a function, run by ONNX Runtime with this number of threads."""
    return open_onnx_runtime(build_graph(), threads)


def open_openvino(graph: bytes, threads: int, precision: str) -> Features:
    """Return the graph as a function, run by OpenVINO in "f32" or "bf16"."""
    import openvino

    core = openvino.Core()
    options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    compiled = core.compile_model(core.read_model(graph), "CPU", options)
    return lambda pixels: compiled(pixels)[0]


def open_streams(graph: bytes) -> Features:
    """Return the graph as a function, run as in `train`: by ONNX Runtime, one image at a time in a thread per core."""
    from sightline.inference.frozen_layers import open_onnxruntime

    layers = open_onnxruntime(graph, (SIDE, SIDE, 3), CORES)
    threads = ThreadPoolExecutor(CORES)

    def run(pixels: Any) -> Any:
        return np.concatenate(list(threads.map(layers.run, np.split(pixels, range(8, len(pixels), 8)))))

    return run


def open_int8(graph: bytes, pixels: Any) -> Features:
    """Return the graph quantized as in `train`, calibrated on 16 of `pixels`, as a function."""
    from sightline.export import quantize
    from sightline.inference.frozen_layers import CALIBRATION_IMAGES

    sample = pixels[np.linspace(0, len(pixels) - 1, CALIBRATION_IMAGES).astype(int)]
    return open_streams(quantize.calibrate_graph(graph, sample).quantize())


def open_keras(precision: str) -> Features:
    """Return the Keras model as a compiled function."""
    from sightline import backend
    from sightline.config import resolve_config
    from sightline.models import pretrained
    from sightline.models.build import ModelSpec, build_model

    config = resolve_config(assignments=[f"model.name={NETWORK.name}", "model.weights=imagenet"])
    weights = pretrained.find_weights(NETWORK, "imagenet", 1.0, SIDE, SIDE)
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
    """Return the installed engines, each as a function of calibration images, with all cores."""
    engines: dict[str, Callable[[Any], Features]] = {
        "ONNX Runtime, float32": lambda _: open_streams(build_graph()),
        "ONNX Runtime, int8": lambda pixels: open_int8(build_graph(), pixels),
        "Keras, float32": lambda _: open_keras("float32"),
        "Keras, bfloat16": lambda _: open_keras("mixed_bfloat16"),
    }
    if importlib.util.find_spec("openvino"):
        engines["OpenVINO, float32"] = lambda _: open_openvino(build_graph(), CORES, "f32")
        if "avx512_bf16" in describe_machine():
            engines["OpenVINO, bfloat16"] = lambda _: open_openvino(build_graph(), CORES, "bf16")
    return engines


def list_variants() -> dict[str, Variant]:
    """Return every engine, and ONNX Runtime with all threads in one call at several batch sizes, or with one thread."""
    variants: dict[str, Variant] = {
        name: partial(measure_speed, open_engine, BATCH) for name, open_engine in list_engines().items()
    }
    for threads, batch in ((CORES, 1), (CORES, 8), (CORES, 32), (CORES, 64), (1, 1), (1, 32)):
        name = f"ONNX Runtime, float32, {batch} in a call on {'one thread' if threads == 1 else f'{threads} threads'}"
        variants[name] = partial(measure_speed, partial(open_batches, threads), batch)
    return variants


def predict_folds(train: Any, test: Any, labels: Any) -> Any:
    """Return the label of each image predicted by a head trained on the features `train` [N, F] of three fifths of all.

    Its regularization strength is the best of four on the features `test` [N, F] of another fifth; it predicts the
    last fifth.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss
    from sklearn.model_selection import StratifiedKFold

    folds = [rows for _, rows in StratifiedKFold(5, shuffle=True, random_state=0).split(train, labels)]
    predicted = np.empty_like(labels)
    for at, tested in enumerate(folds):
        chosen, fitted = folds[(at + 1) % 5], np.concatenate([folds[(at + step) % 5] for step in (2, 3, 4)])
        center, scale = train[fitted].mean(0), train[fitted].std(0) + 1e-6
        heads = [
            LogisticRegression(C=strength, max_iter=500).fit((train[fitted] - center) / scale, labels[fitted])
            for strength in (0.0003, 0.001, 0.003, 0.01)
        ]
        best = min(heads, key=lambda h: log_loss(labels[chosen], h.predict_proba((test[chosen] - center) / scale)))
        predicted[tested] = best.predict((test[tested] - center) / scale)
    return predicted


def print_accuracy(text: str) -> None:
    """Print the cross-validated accuracy of a head on the features of each matching engine, and the paired test."""
    from sightline.evaluation.paired import compare_paired

    engines = {name: open_engine for name, open_engine in list_engines().items() if text in name}
    for name, count in (("cats_vs_dogs", None), ("flowers5", 1500)):
        pixels, labels = load_pixels(name, count)
        exact: Any = None
        reference: Any = None
        print(f"\n{name}, {len(pixels)} images\n")
        for engine, open_engine in engines.items():
            run = open_engine(pixels)
            features = np.concatenate([run(pixels[start : start + BATCH]) for start in range(0, len(pixels), BATCH)])
            exact = features if exact is None else exact
            for tested_on, test in (("float32", exact), ("the same", features)):
                correct = predict_folds(features, test, labels) == labels
                reference = correct if reference is None else reference
                compared = compare_paired(reference, correct)
                print(
                    f"{engine}, tested on {tested_on}: {correct.mean():.4f}, {compared.difference:+.4f} "
                    f"(p = {compared.p_value:.2f})",
                    flush=True,
                )


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if "--accuracy" in sys.argv:
        print_accuracy(" ".join(sys.argv[sys.argv.index("--accuracy") + 1 :]))
    else:
        compare(f"Features of {COUNT} photographs at {SIDE}x{SIDE} by frozen {NETWORK.name}", list_variants())
