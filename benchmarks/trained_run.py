"""The run shared by inference benchmarks: MobileNetV2 0.35, trained on cats and dogs with `transfer-mobilenetv2`."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from measure import SHARED

RUN = "SIGHTLINE_BENCHMARK_RUN"
IMAGES = SHARED / "data" / "cats_vs_dogs"


@contextmanager
def trained_run() -> Iterator[Path]:
    """Yield the run named by the environment; if there is none, train one and export its path to child processes."""
    if known := os.environ.get(RUN):
        yield Path(known)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run")
        arguments = ["train", str(IMAGES), "--recipe", "transfer-mobilenetv2", "--out", str(path)]
        environment = {"KERAS_HOME": str(SHARED / "keras")} | os.environ  # the ImageNet weights beside the images
        completed = subprocess.run(
            [sys.executable, "-m", "sightline", *arguments],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
        if completed.returncode:
            sys.exit(completed.stderr)
        os.environ[RUN] = str(path)
        yield path


def bundle() -> Path:
    """Return the path of the run's bundle."""
    return Path(os.environ[RUN], "bundle")
