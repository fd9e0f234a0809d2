"""The peak memory of a studio of 100,000 images with 1,280 features each: ``python large_studio.py FOLDER``.

The features are random; everything else is the work of the pages *Label* and *Map* and of the look-alikes, in one
process.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sightline.callbacks import Callback
from sightline.config import RunConfig
from sightline.data.types import ImageRecord, Index
from sightline.evaluation.active_learning import project_features
from sightline.studio.checks import BackgroundCheck
from sightline.studio.corrections import Corrections
from sightline.studio.embedding_map import compute_pca
from sightline.studio.features import ImageFeatures
from sightline.studio.labeling import Labeling
from sightline.studio.library import Library
from sightline.studio.look_alikes import LookAlikes

IMAGES, FEATURES, CLASSES, LABELS = 100_000, 1_280, 10, 1_000


def draw_features(file: Path) -> NDArray[np.float32]:
    """Write features of ten classes, and return them mapped from the file, like the cache."""
    generator = np.random.default_rng(0)
    centers = generator.normal(0, 1, (CLASSES, FEATURES)).astype(np.float32)
    with file.open("wb") as stream:
        header = {"descr": "<f4", "fortran_order": False, "shape": (IMAGES, FEATURES)}
        np.lib.format.write_array_header_1_0(stream, header)
        for start in range(0, IMAGES, 1_000):
            noise = generator.normal(0, 1, (1_000, FEATURES)).astype(np.float32)
            stream.write((noise + centers[np.arange(start, start + 1_000) % CLASSES]).data)
    features: NDArray[np.float32] = np.load(file, "r")
    return features


def open_index() -> Index:
    """Return the same number of image records, without files."""

    def read(position: int) -> bytes:
        raise AssertionError(f"image {position} is not needed")

    hashes = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(IMAGES)]
    images = tuple(ImageRecord(f"photos/IMG-{i:06}.jpg", h, "", None, 640, 480) for i, h in enumerate(hashes))
    return Index("photos", images, (), read)


def measure_peak(folder: Path) -> int:
    """Return the peak memory of this process in bytes, including mapped files."""
    features, index = draw_features(folder / "features.npy"), open_index()
    projected = project_features(features)
    corrections = Corrections(folder / "fixes.jsonl", index)
    library = Library(index, corrections)

    def compute(_index: Index, _callback: Callback) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        return projected, np.ones(IMAGES, bool)

    labeling = Labeling(index, corrections, compute, [f"class-{i}" for i in range(CLASSES)])
    chosen = np.flatnonzero(np.arange(IMAGES) % (IMAGES // LABELS) < 10)[:LABELS]
    for number in range(CLASSES):
        of_class = chosen[chosen % CLASSES == number].tolist()
        library.update(corrections.apply(of_class, "relabel", f"class-{number}").after)
    labeling.features.start()
    labeling.features.wait()
    labeling.training.wait()
    labeling.forecast.wait()
    assert labeling.describe()["labeled"] == LABELS
    assert labeling.describe()["queue"]
    look_alikes = LookAlikes(index, compute, BackgroundCheck(index, library, RunConfig().input))
    look_alikes.features.start()
    look_alikes.features.wait()
    nearest = look_alikes.find_nearest(7)[1]
    assert {i % CLASSES for i in nearest} == {7}
    of_run = ImageFeatures(lambda _: features)  # a run's studio has all of these
    of_run.start()
    of_run.wait()
    nearest_by_features = of_run.find_nearest(np.array(features[7]), np.arange(IMAGES) != 7, 8)
    assert {i % CLASSES for i, _ in nearest_by_features} == {7}
    assert compute_pca(features).shape == (IMAGES, 2)
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    sys.stdout.write(str(measure_peak(Path(sys.argv[1]))))
