"""Compare `predict --out NAME.parquet` in this process and with `--engine ray`, on the cores of this machine.

    .venv-ray/bin/python benchmarks/ray_engine.py

``SIGHTLINE_BENCHMARK_COUNT`` is the number of images, 20,000 by default: the photographs of cats and dogs, repeated,
classified by the pretrained classifier `imagenet`. The last column of the table is the overhead of Ray: 1.10 is 10%.
The predicted rows of both are compared.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

from measure import compare
from trained_run import IMAGES

import sightline as sl
from sightline.distributed import ray_cluster

COUNT = int(os.environ.get("SIGHTLINE_BENCHMARK_COUNT", "20000"))
EXPECTED = "SIGHTLINE_BENCHMARK_ROWS"  # a file with the hash of the rows of the first variant


def prepare() -> tuple[sl.Classifier, list[str]]:
    """Return the model and the paths, with the model's file and the photographs in the page cache."""
    files = sorted(IMAGES.rglob("*.jpg"))
    for file in files:
        file.read_bytes()
    classifier = sl.load("imagenet")
    classifier.predict(files[:8])
    return classifier, [str(file) for file in islice(cycle(files), COUNT)]


def measure(classifier: sl.Classifier, paths: list[str], engine: str) -> float:
    """Return the images per second, and check that the rows equal those of the first variant."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "labels.parquet")
        started = time.perf_counter()
        classifier.write_predictions(paths, out, engine=engine, progress=False)
        seconds = time.perf_counter() - started
        digest = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(out.glob("part-*")))).hexdigest()
    expected = Path(os.environ[EXPECTED])
    if not expected.exists():
        expected.write_text(digest, encoding="utf-8")
    assert expected.read_text(encoding="utf-8") == digest, "the engines differ"
    return COUNT / seconds


def predict_here() -> float:
    """Predict in this process."""
    return measure(*prepare(), "local")


def predict_on_running_cluster() -> float:
    """Predict on a running Ray cluster; the time includes the start of the workers."""
    classifier, paths = prepare()
    with ray_cluster.connect():
        return measure(classifier, paths, "ray")


def predict_on_new_cluster() -> float:
    """Predict on a new Ray cluster; the time includes its start and stop."""
    return measure(*prepare(), "ray")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as rows:
        os.environ.setdefault(EXPECTED, str(Path(rows, "sha256")))
        variants = {"local": predict_here, "ray": predict_on_running_cluster, "ray, started": predict_on_new_cluster}
        compare(f"Predict {COUNT:,} photographs into Parquet", variants)
