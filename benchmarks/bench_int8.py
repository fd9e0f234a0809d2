"""MobileNetV2 0.35 in int8 vs. float32 in ONNX Runtime: speed, and accuracy on the test split."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import trained
from measure import compare

INT8 = "SIGHTLINE_BENCHMARK_INT8"
SECONDS = 3.0


def speed(folder: Path, rows: int) -> float:
    """Return images/s of a bundle at batch size `rows`, on random pixels."""
    import numpy as np

    from sightline.prediction import bundle

    _, predictor = bundle.load(folder)
    how = predictor.preprocess
    pixels = np.random.default_rng(0).integers(0, 256, (rows, how.height, how.width, how.channels), np.uint8)
    for _ in range(3):
        predictor.probabilities(pixels)
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < SECONDS:
        predictor.probabilities(pixels)
        count += rows
    return count / (time.perf_counter() - started)


def accuracy() -> str:
    """Compare the accuracy of both on the run's test split."""
    import numpy as np

    from sightline.compression import judge
    from sightline.prediction import bundle, parity
    from sightline.workflow import load

    samples = load(os.environ[trained.RUN]).labelled(split="test").samples
    right = []
    for folder in (trained.bundle(), Path(os.environ[INT8])):
        found = parity.probabilities(bundle.load(folder)[1], samples)
        right.append(np.equal(found.argmax(1), samples.labels))
    said = judge.judge(right[0], right[1], "test")
    return (
        f"test split: int8 {said.small:.4f}, float32 {said.large:.4f}, difference {100 * said.difference:+.2f} points "
        f"({100 * said.interval.low:+.2f} to {100 * said.interval.high:+.2f}) on {said.count} images, "
        f"McNemar p = {said.p_value:.3g}"
    )


def variant(rows: int, *, integers: bool) -> Callable[[], float]:
    """Return one variant of the benchmark."""
    return lambda: speed(Path(os.environ[INT8]) if integers else trained.bundle(), rows)


if __name__ == "__main__":
    with trained.run() as path, tempfile.TemporaryDirectory() as folder:
        if INT8 not in os.environ:
            out = os.environ[INT8] = str(Path(folder, "int8"))
            command = [sys.executable, "-m", "sightline", "export", str(path), "--precision", "int8", "--out", out]
            print(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            print(accuracy(), flush=True)
        compare(
            "MobileNetV2 0.35",
            {
                f"{name}, batch {rows}": variant(rows, integers=name == "int8")
                for rows in (32, 1)
                for name in ("int8", "float32")
            },
        )
