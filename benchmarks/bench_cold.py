"""One picture predicted from a bundle by a process of its own, beside importing what it cannot do without."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import trained
from measure import compare

PYTHON = os.environ.get("SIGHTLINE_BENCHMARK_PYTHON", sys.executable)  # as that of an environment with the wheel alone


def seconds(*arguments: str) -> float:
    """Run Python once so that all files are in memory, and again to see how long it takes."""
    subprocess.run([PYTHON, *arguments], stdout=subprocess.DEVNULL, check=True)
    started = time.perf_counter()
    subprocess.run([PYTHON, *arguments], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def predict() -> float:
    """`sightline predict` with one picture; its figure is starts per second."""
    picture = next(trained.PICTURES.rglob("*.jpg"))
    return 1 / seconds("-m", "sightline", "predict", str(trained.bundle()), str(picture), "--json")


def imports() -> float:
    """The imports of NumPy, Pillow and ONNX Runtime alone."""
    return 1 / seconds("-c", "import numpy, onnxruntime, PIL.Image")


if __name__ == "__main__":
    with trained.run():
        compare("From nothing to one answer, starts/s", {"predict": predict, "imports alone": imports}, rounds=5)
