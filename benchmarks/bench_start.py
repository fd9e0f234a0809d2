"""Time before the first step: indexing files, reading the cache, and starting `train` on a cached dataset."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
from measure import SHARED

ROUNDS = 3


def index_flowers() -> tuple[int, float]:
    """Index and hash the files of flowers5; return their number and the seconds taken."""
    from sightline.data.indexing import build_index

    started = time.perf_counter()
    count = len(build_index(SHARED / "data" / "flowers5").images)
    return count, time.perf_counter() - started


def read_cache(folder: str) -> float:
    """Return images/s of random batches of 32 from a reopened cache of 840 photographs at 224x224."""
    from sightline.data.batches import epoch_order, iterate_batches
    from sightline.data.cache import load_pixels
    from sightline.data.types import Subset
    from sightline.preprocessing import PreprocessingSpec

    paths = sorted((SHARED / "data" / "cats_vs_dogs").rglob("*.jpg"))
    os.environ["SIGHTLINE_CACHE"] = folder
    cached = load_pixels([str(p) for p in paths], lambda i: paths[i].read_bytes(), PreprocessingSpec(224, 224))
    count = len(paths)
    subset = Subset(cached.array, np.arange(count), np.zeros(count, np.int32), tuple(map(str, paths)))
    started = time.perf_counter()
    count_seen = 0
    for epoch in range(20):
        count_seen += sum(len(batch.pixels) for batch in iterate_batches(subset, 32, epoch_order(count, 0, epoch)))
    return count_seen / (time.perf_counter() - started)


def time_to_first_step(folder: str) -> float:
    """Return the seconds from `sightline train` on 600 cached photographs to its first step, in a new process."""
    environment = os.environ | {"SIGHTLINE_CACHE": folder, "KERAS_HOME": str(SHARED / "keras")}
    source, out = str(SHARED / "data" / "cats_vs_dogs"), f"{folder}/run"
    code = (
        "import time, os, sys; begun = time.perf_counter()\n"
        "from sightline.api.training import train_run; from sightline.callbacks import Callback\n"
        "class First(Callback):\n"
        "    def on_step_end(self, *_): print(time.perf_counter() - begun, flush=True); os._exit(0)\n"
        f"train_run([{source!r}], recipe='transfer', out={out!r}, force=True, callback=First())\n"
    )
    completed = subprocess.run(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return float(completed.stdout.splitlines()[-1])


if __name__ == "__main__":
    indexed = [index_flowers() for _ in range(ROUNDS)]
    print(f"indexing {indexed[0][0]} files: {statistics.median(s for _, s in indexed):.2f} s, median of {ROUNDS}")
    with tempfile.TemporaryDirectory() as cache_folder:
        read_cache(cache_folder)
        rates = [read_cache(cache_folder) for _ in range(ROUNDS)]
        print(
            f"images at 224x224 from the cache, in batches of 32: {statistics.median(rates):,.0f}/s, median of {ROUNDS}"
        )
        seconds = [time_to_first_step(cache_folder) for _ in range(ROUNDS + 1)]
        cached = statistics.median(seconds[1:])
        print(
            f"train to its first step: {seconds[0]:.1f} s with an empty cache, then {cached:.1f} s, median of {ROUNDS}"
        )
