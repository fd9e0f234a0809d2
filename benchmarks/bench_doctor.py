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

SIZE = 128  # the size that the doctor decodes to
FOLDER = SHARED / "data" / "cats_vs_dogs"
clock = time.process_time if os.environ.get("SIGHTLINE_CPU") else time.perf_counter


def _warm() -> int:
    """Read all files into the page cache; return how many there are."""
    return sum(bool(path.read_bytes()) for path in sorted(FOLDER.rglob("*.jpg")))


def doctor() -> float:
    """Index, measure every image, group and check, as `sightline doctor` does before it prints."""
    from sightline.data.audit import audit
    from sightline.data.index import index

    count = _warm()
    started = clock()
    audit(index(FOLDER))
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
    with ThreadPoolExecutor(process.cores()) as pool:
        list(pool.map(load, paths))
    return len(paths) / (clock() - started)


def decode() -> float:
    """Read and decode every image to grayscale at the doctor's size, in one thread per core, without storing."""
    from sightline.preprocess import Preprocess

    _warm()
    paths = sorted(FOLDER.rglob("*.jpg"))
    how = Preprocess(SIZE, SIZE, 1)
    started = clock()
    with ThreadPoolExecutor(process.cores()) as pool:
        list(pool.map(lambda path: how.decode(path.read_bytes()).shape, paths))
    return len(paths) / (clock() - started)


def train_decode() -> float:
    """Decode into the cache at 224x224, as training does."""
    from sightline.data.cache import pixels
    from sightline.preprocess import Preprocess

    _warm()
    paths = sorted(FOLDER.rglob("*.jpg"))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SIGHTLINE_CACHE"] = folder
        started = clock()
        pixels([str(p) for p in paths], lambda i: paths[i].read_bytes(), Preprocess(224, 224))
        return len(paths) / (clock() - started)


def grouping() -> float:
    """Group 100,000 random hashes; returns hashes per second."""
    import numpy as np

    from sightline.data.near import groups

    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 100_000, dtype=np.uint64)
    small = rng.integers(0, 256, (100_000, 32, 32), dtype=np.uint8)
    started = clock()
    groups(hashes, small)
    return 100_000 / (clock() - started)


if __name__ == "__main__":
    compare(
        "The doctor on 840 JPEG photographs",
        {"doctor": doctor, "decoding alone, by Pillow": pillow, "decoding alone, to the doctor's size": decode,
         "decoding for training": train_decode, "grouping 100,000 hashes (hashes/s)": grouping},
    )  # fmt: skip
