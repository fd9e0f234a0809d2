"""MobileNetV2 0.35 in int8 vs. float32 in ONNX Runtime: speed, and accuracy on the test split."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import trained_run
from int8_accuracy import compare_accuracy
from measure import compare

INT8 = "SIGHTLINE_BENCHMARK_INT8"
SECONDS = 3.0


def measure_speed(folder: Path, rows: int) -> float:
    """Return images/s of a bundle at batch size `rows`, on random pixels."""
    import numpy as np

    from sightline.inference import bundle

    _, predictor = bundle.load(folder)
    preprocess = predictor.preprocess
    pixels = np.random.default_rng(0).integers(
        0, 256, (rows, preprocess.height, preprocess.width, preprocess.channels), np.uint8
    )
    for _ in range(3):
        predictor.probabilities(pixels)
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < SECONDS:
        predictor.probabilities(pixels)
        count += rows
    return count / (time.perf_counter() - started)


def make_variant(rows: int, *, int8: bool) -> Callable[[], float]:
    """Return one variant of the benchmark."""
    return lambda: measure_speed(Path(os.environ[INT8]) if int8 else trained_run.bundle(), rows)


if __name__ == "__main__":
    with trained_run.trained_run() as path, tempfile.TemporaryDirectory() as folder:
        if INT8 not in os.environ:
            out = os.environ[INT8] = str(Path(folder, "int8"))
            command = [sys.executable, "-m", "sightline", "export", str(path), "--precision", "int8", "--out", out]
            print(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            print(compare_accuracy(path, trained_run.bundle(), Path(out)), flush=True)
        compare(
            "MobileNetV2 0.35",
            {
                f"{name}, batch {rows}": make_variant(rows, int8=name == "int8")
                for rows in (32, 1)
                for name in ("int8", "float32")
            },
        )
