"""Run the doctor on photographs, compared with decoding alone: the cost of hashes, image statistics and grouping.

Set SIGHTLINE_CPU=1 to measure the CPU time of all threads, on a machine that is not idle.
"""

from __future__ import annotations

import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from measure import SHARED, compare

from sightline import process

SIZE = 128  # the doctor's decoded size
FOLDER = SHARED / "data" / "cats_vs_dogs"
clock = time.process_time if os.environ.get("SIGHTLINE_CPU") else time.perf_counter


def _warm() -> int:
    """Read all files into the page cache; return how many there are."""
    return sum(bool(path.read_bytes()) for path in sorted(FOLDER.rglob("*.jpg")))


def run_doctor() -> float:
    """Index, measure every image, group and check, like `sightline doctor` before it prints."""
    from sightline.data.checks.audit import audit_images
    from sightline.data.indexing import build_index

    count = _warm()
    started = clock()
    audit_images(build_index(FOLDER))
    return count / (clock() - started)


def pillow() -> float:
    """Read and decode every image with Pillow, in one thread per core, without resizing or storing."""
    from PIL import Image

    _warm()
    paths = sorted(FOLDER.rglob("*.jpg"))

    def load(path: Path) -> tuple[int, int]:
        with Image.open(path) as image:
            image.load()
            return image.size

    started = clock()
    with ThreadPoolExecutor(process.count_cores()) as pool:
        list(pool.map(load, paths))
    return len(paths) / (clock() - started)


def decode() -> float:
    """Read and decode every image to grayscale at the doctor's size, in one thread per core, without storing."""
    from sightline.preprocessing import PreprocessingSpec

    _warm()
    paths = sorted(FOLDER.rglob("*.jpg"))
    preprocess = PreprocessingSpec(SIZE, SIZE, 1)
    started = clock()
    with ThreadPoolExecutor(process.count_cores()) as pool:
        list(pool.map(lambda path: preprocess.decode(path.read_bytes()).shape, paths))
    return len(paths) / (clock() - started)


def train_decode() -> float:
    """Decode into the cache at 224x224, as training does."""
    from sightline.data.cache import load_pixels
    from sightline.preprocessing import PreprocessingSpec

    _warm()
    paths = sorted(FOLDER.rglob("*.jpg"))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SIGHTLINE_CACHE"] = folder
        started = clock()
        load_pixels([str(p) for p in paths], lambda i: paths[i].read_bytes(), PreprocessingSpec(224, 224))
        return len(paths) / (clock() - started)


def grouping() -> float:
    """Group 100,000 random hashes; return hashes per second."""
    import numpy as np

    from sightline.data.checks.near_duplicates import group_near_duplicates

    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 100_000, dtype=np.uint64)
    small = rng.integers(0, 256, (100_000, 32, 32), dtype=np.uint8)
    started = clock()
    group_near_duplicates(hashes, small)
    return 100_000 / (clock() - started)


if __name__ == "__main__":
    compare(
        "The doctor on 840 JPEG photographs",
        {"doctor": run_doctor, "decoding alone, by Pillow": pillow, "decoding alone, to the doctor's size": decode,
         "decoding for training": train_decode, "grouping 100,000 hashes (hashes/s)": grouping},
    )  # fmt: skip
