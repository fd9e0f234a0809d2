"""The run that benchmarks of shipped files share: MobileNetV2 0.35 with the recipe `transfer` on the cats and dogs."""

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
PICTURES = SHARED / "data" / "cats_vs_dogs"


@contextmanager
def run() -> Iterator[Path]:
    """Give the run that the environment names; where it names none, train one, and name it to processes begun here."""
    if known := os.environ.get(RUN):
        yield Path(known)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run")
        command = [
            sys.executable,
            "-m",
            "sightline",
            "train",
            str(PICTURES),
            "--recipe",
            "transfer",
            "--out",
            str(path),
        ]
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        os.environ[RUN] = str(path)
        yield path


def bundle() -> Path:
    """Return the bundle of the run."""
    return Path(os.environ[RUN], "bundle")
