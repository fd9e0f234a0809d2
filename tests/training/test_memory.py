"""Memory during training does not grow with the epochs, and images on disk are not loaded at once."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from sightline import backend
from sightline.callbacks import Callback, EpochRecord
from sightline.config import AugmentConfig, EarlyStoppingConfig, RunConfig, TrainConfig
from sightline.data.types import Subset
from sightline.models.build import Network
from sightline.training.loop import fit

MB = 1 << 20
SIDE = 64


def read_resident_bytes(kind: str) -> int:
    """Return the resident bytes of this process: ``RssAnon`` for its own memory, ``RssFile`` for mapped files."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{kind}:"):
            return int(line.split()[1]) * 1024
    pytest.skip(f"/proc/self/status has no {kind}")


class MemoryCallback(Callback):
    def __init__(self) -> None:
        self.resident_bytes: list[int] = []

    def on_epoch_end(self, record: EpochRecord) -> None:
        self.resident_bytes.append(read_resident_bytes("RssAnon"))


def build_trivial_network() -> Network:
    """Return a trivial model, so that many images are processed quickly."""
    keras = backend.keras()
    pixels = keras.Input((SIDE, SIDE, 3), dtype="uint8")
    features = keras.layers.Flatten()(keras.layers.AveragePooling2D(16)(keras.layers.Rescaling(1 / 255)(pixels)))
    logits = keras.layers.Dense(3)(features)
    outputs = {"probabilities": keras.layers.Softmax()(logits), "logits": logits, "features": features}
    return Network(keras.Model(pixels, outputs), (), pretrained=False)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc/self/status exists on Linux only")
def test_images_on_disk_are_not_loaded_at_once(tmp_path: Path) -> None:
    """An epoch over 600 MB of images in a sparse file uses less than 100 MB."""
    count = 600 * MB // (SIDE * SIDE * 3)
    pixels = np.lib.format.open_memmap(tmp_path / "pixels.npy", mode="w+", dtype=np.uint8, shape=(count, SIDE, SIDE, 3))
    labels = (np.arange(count) % 3).astype(np.int32)
    subset = Subset(pixels, np.arange(count), labels, tuple(map(str, range(count))))
    train = TrainConfig(epochs=1, batch_size=1000, early_stopping=EarlyStoppingConfig(restore_best_weights=False))
    network, callback = build_trivial_network(), MemoryCallback()
    fit(network, subset.head(2000), subset.head(1000), RunConfig(train=train), callback)  # the backend's own memory
    fit(network, subset, subset.head(1000), RunConfig(train=train), callback)
    before, after = callback.resident_bytes
    assert after - before < 100 * MB, f"{before // MB} MB before, {after // MB} MB after"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc/self/status exists on Linux only")
def test_memory_does_not_grow_with_the_epochs(tmp_path: Path) -> None:
    """Each epoch reads 12 MB of images from disk: if they were kept, eight epochs would add 100 MB."""
    count = 1000
    pixels = np.lib.format.open_memmap(tmp_path / "pixels.npy", mode="w+", dtype=np.uint8, shape=(count, SIDE, SIDE, 3))
    pixels[:] = np.random.default_rng(0).integers(0, 256, pixels.shape, np.uint8)
    labels = (np.arange(count) % 3).astype(np.int32)
    subset = Subset(pixels, np.arange(count), labels, tuple(map(str, range(count))))
    train = TrainConfig(epochs=10, batch_size=100, early_stopping=EarlyStoppingConfig(restore_best_weights=False))
    callback = MemoryCallback()
    fit(
        build_trivial_network(),
        subset,
        subset.head(500),
        RunConfig(train=train, augment=AugmentConfig(horizontal_flip=True)),
        callback,
    )
    second, tenth = callback.resident_bytes[1], callback.resident_bytes[9]
    assert tenth - second < 30 * MB, f"in MB after each epoch: {[n // MB for n in callback.resident_bytes]}"
