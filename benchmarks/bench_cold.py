"""Predict one image from a bundle in a new process, compared with importing its dependencies alone."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import trained_run
from measure import compare

# As in a normal installation, let Python cache compiled files.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
PYTHON = os.environ.get("SIGHTLINE_BENCHMARK_PYTHON", sys.executable)  # e.g. from an environment with only the wheel


def measure_start(*arguments: str) -> float:
    """Return the seconds of a second Python run, when all files are in the page cache."""
    subprocess.run([PYTHON, *arguments], stdout=subprocess.DEVNULL, check=True, env=ENVIRONMENT)
    started = time.perf_counter()
    subprocess.run([PYTHON, *arguments], stdout=subprocess.DEVNULL, check=True, env=ENVIRONMENT)
    return time.perf_counter() - started


def predict() -> float:
    """Return starts per second of `sightline predict` with one image."""
    image = next(trained_run.IMAGES.rglob("*.jpg"))
    return 1 / measure_start("-m", "sightline", "predict", str(trained_run.bundle()), str(image), "--format", "json")


def imports() -> float:
    """Return starts per second of importing NumPy, Pillow and ONNX Runtime."""
    return 1 / measure_start("-c", "import numpy, onnxruntime, PIL.Image")


if __name__ == "__main__":
    with trained_run.trained_run():
        compare(
            "From process start to one prediction",
            {"predict": predict, "imports alone": imports},
            rounds=5,
            unit="starts/s",
        )
