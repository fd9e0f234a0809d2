"""`predict` over a folder and over decoded images, compared with a bare ONNX Runtime loop on the same pixels."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import trained_run
from measure import compare

from sightline import process

ROWS = 32
TIMES = 3  # passes over all images, to take more than a second


def list_photographs() -> list[Path]:
    """Return the 840 photographs, about 500x400 pixels, after reading them into the page cache."""
    paths = sorted(trained_run.IMAGES.rglob("*.jpg"))
    for path in paths:
        path.read_bytes()
    return paths


def load_model() -> tuple[Any, list[Path]]:
    """Return the model, warmed up, and the photographs."""
    import numpy as np

    from sightline.inference import bundle

    _, predictor = bundle.load(trained_run.bundle())
    preprocess = predictor.preprocess
    predictor.probabilities(np.zeros((ROWS, preprocess.height, preprocess.width, preprocess.channels), np.uint8))
    return predictor, list_photographs()


def decode_images(predictor: Any, paths: list[Path]) -> Any:
    """Decode in one thread per core; uint8 [N, H, W, C]."""
    import numpy as np

    with ThreadPoolExecutor(process.count_cores()) as pool:
        return np.stack(list(pool.map(lambda path: predictor.preprocess.decode(path.read_bytes()), paths)))


def run_session(session: Any, pixels: Any) -> Any:
    """Run the bare session over the pixels."""
    import numpy as np

    starts = range(0, len(pixels), ROWS)
    return np.concatenate([session.run(["probabilities"], {"pixels": pixels[i : i + ROWS]})[0] for i in starts])


def run_bare_loop() -> float:
    """Run the obvious loop on decoded pixels, and check that it gives the same result as `predict`."""
    import numpy as np
    import onnxruntime

    from sightline.inference import stream
    from sightline.inference.inputs import make_items

    predictor, paths = load_model()
    pixels = decode_images(predictor, paths)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        trained_run.bundle() / "model.onnx", options, providers=["CPUExecutionProvider"]
    )
    probabilities = run_session(session, pixels)
    best = [p.top[0].probability for p in stream.predict(predictor, make_items(iter(pixels)))]
    assert np.allclose(probabilities.max(1), best, atol=1e-5)
    started = time.perf_counter()
    for _ in range(TIMES):
        run_session(session, pixels)
    return TIMES * len(pixels) / (time.perf_counter() - started)


def predict_decoded() -> float:
    """Run `predict` on the same pixels."""
    from sightline.inference import stream
    from sightline.inference.inputs import make_items

    predictor, paths = load_model()
    pixels = decode_images(predictor, paths)
    started = time.perf_counter()
    for _ in range(TIMES):
        count = sum(1 for _ in stream.predict(predictor, make_items(iter(pixels))))
        assert count == len(pixels)
    return TIMES * len(pixels) / (time.perf_counter() - started)


def predict_folder() -> float:
    """Run `predict` over the folder, which overlaps decoding and inference."""
    from sightline.inference import stream
    from sightline.inference.inputs import InputItem, expand_inputs

    predictor, paths = load_model()
    started = time.perf_counter()
    items: Iterator[InputItem] = expand_inputs([trained_run.IMAGES])
    count = sum(1 for _ in stream.predict(predictor, items))
    assert count >= len(paths)
    return count / (time.perf_counter() - started)


def decode_then_predict() -> float:
    """Decode all images in threads, then run the bare loop, without overlap."""
    import onnxruntime

    predictor, paths = load_model()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        trained_run.bundle() / "model.onnx", options, providers=["CPUExecutionProvider"]
    )
    started = time.perf_counter()
    run_session(session, decode_images(predictor, paths))
    return len(paths) / (time.perf_counter() - started)


if __name__ == "__main__":
    with trained_run.trained_run():
        compare(
            "Predicting 840 JPEG photographs, MobileNetV2 0.35 in float32",
            {"predict, decoded": predict_decoded, "bare loop, decoded": run_bare_loop,
            "predict, folder": predict_folder,
             "decoding, then the bare loop": decode_then_predict},
        )  # fmt: skip
