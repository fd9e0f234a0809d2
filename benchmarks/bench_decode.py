"""Decode photographs into the cache, compared with Pillow in one thread and antialiased `tf.data`."""

from __future__ import annotations

import io
import os
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from measure import SHARED, compare

SIZE = 224
TIMES = 3  # makes the cost of a process's first image negligible


def list_photographs() -> list[Path]:
    """Return 840 JPEG photographs of cats and dogs, about 500x400 pixels, three times over, all in the page cache."""
    paths = TIMES * sorted((SHARED / "data" / "cats_vs_dogs").rglob("*.jpg"))
    for path in paths:
        path.read_bytes()
    return paths


def decode_with_sightline(*, keep: bool) -> float:
    """Decode in one thread per core, like `sightline train`: into the cache on disk, or as with ``--no-cache``."""
    from sightline import backend, process
    from sightline.data.cache import load_pixels
    from sightline.preprocessing import PreprocessingSpec

    paths = list_photographs()
    process.claim()
    backend.tune_malloc()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SIGHTLINE_CACHE"] = folder
        started = time.perf_counter()
        load_pixels(
            list(map(str, range(len(paths)))), lambda i: paths[i].read_bytes(), PreprocessingSpec(SIZE, SIZE), keep=keep
        )
        return len(paths) / (time.perf_counter() - started)


def decode_with_pillow() -> float:
    """Decode with Pillow in one thread, into memory."""
    import numpy as np
    from PIL import Image

    paths = list_photographs()
    out = np.empty((len(paths), SIZE, SIZE, 3), np.uint8)
    started = time.perf_counter()
    for i, path in enumerate(paths):
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            out[i] = np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    return len(paths) / (time.perf_counter() - started)


def decode_with_tf_data() -> float:
    """Decode with `tf.data`: parallel maps of decode_jpeg and antialiased resize, autotuned, batched."""
    import tensorflow as tf

    paths = list_photographs()

    def decode(path: Any) -> Any:
        image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        return tf.cast(tf.round(tf.image.resize(image, (SIZE, SIZE), antialias=True)), tf.uint8)

    data = tf.data.Dataset.from_tensor_slices([str(p) for p in paths])
    data = data.map(decode, num_parallel_calls=tf.data.AUTOTUNE).batch(32).prefetch(tf.data.AUTOTUNE)
    started = time.perf_counter()
    count = sum(int(batch.shape[0]) for batch in data)
    return count / (time.perf_counter() - started)


if __name__ == "__main__":
    compare(
        f"Decoding {TIMES} times 840 JPEG photographs to {SIZE}x{SIZE}, uint8",
        {
            "sightline, not cached": partial(decode_with_sightline, keep=False),
            "sightline, into the cache": partial(decode_with_sightline, keep=True),
            "Pillow, one thread": decode_with_pillow,
            "tf.data, antialiased": decode_with_tf_data,
        },
    )
