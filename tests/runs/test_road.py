"""The road of an image from `train` to the report, as a real training walks it; docs/architecture.md draws it."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import groupby, pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import sightline
from sightline import backend
from sightline.data.dataset import DecodedDataset
from sightline.data.types import Index, LabeledSubset, Subset
from sightline.runs.finalize import CANDIDATES_PER_CLASS
from test_architecture import LAYER_OF, ROOT

pytestmark = pytest.mark.usefixtures("plain_figures")

IMAGE_VALUES = (DecodedDataset, Index, LabeledSubset, Subset)
PNG = b"\x89PNG"
SOURCE = f"{ROOT}{os.sep}"
MAX_STEPS_BACK = 2
READS = 2  # of each file: for its hash and header, and for its pixels


def carries_images(value: object) -> bool:
    """Return whether a value is encoded bytes, pixels, or a set of images."""
    if isinstance(value, np.ndarray):
        return value.dtype == np.uint8 and value.ndim >= 3
    return isinstance(value, IMAGE_VALUES) or (isinstance(value, bytes) and value.startswith(PNG))


def find_package(frame: FrameType | None) -> str | None:
    """Return the package of Sightline whose code runs in `frame`; None for other code."""
    if frame is None or not frame.f_code.co_filename.startswith(SOURCE):  # called often, so without `Path`
        return None
    return frame.f_code.co_filename[len(SOURCE) :].partition(os.sep)[0].removesuffix(".py")


@contextmanager
def recording_stations() -> Iterator[list[tuple[str, str]]]:
    """Record where `runs` hands images to another package, or gets them from one: its name and the function.

    Methods of the values that hold images, such as `DecodedDataset.subset`, are not stations, nor is writing the
    bytes of a plot.
    """
    stations: list[tuple[str, str]] = []

    def profile(frame: FrameType, event: str, returned: Any) -> None:
        if event not in {"call", "return"}:
            return
        package = find_package(frame)
        if package in {None, "_io", "runs"} or find_package(frame.f_back) != "runs":
            return
        code = frame.f_code
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        if isinstance(frame.f_locals.get("self"), IMAGE_VALUES):
            return
        if carries_images(returned) or any(carries_images(frame.f_locals.get(name)) for name in names):
            stations.append((str(package), code.co_name))

    previous = sys.getprofile()
    sys.setprofile(profile)
    try:
        yield stations
    finally:
        sys.setprofile(previous)


@pytest.fixture(scope="module")
def count_opened() -> Callable[[Path], Counter[str]]:
    """Count how often each file below a folder is opened from now on; an audit hook stays until Python ends."""
    opened: Counter[str] = Counter()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | os.PathLike):
            opened[os.fspath(arguments[0])] += 1

    sys.addaudithook(hook)
    return lambda folder: Counter({p: n for p, n in opened.items() if Path(p).is_relative_to(folder)})


@pytest.mark.usefixtures("plain_figures")  # to draw under the profiler takes long, too
def test_an_image_steps_back_at_most_twice_and_is_decoded_into_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count_opened: Callable[[Path], Counter[str]]
) -> None:
    from sightline.datasets import coffee_beans

    data, cache = tmp_path / "beans", tmp_path / "cache"
    coffee_beans.write(data, 40, 32)
    written = count_opened(data)
    monkeypatch.setenv("SIGHTLINE_CACHE", str(cache))
    backend.keras()  # importing it under the profiler takes long
    settings = ["model.name=cifar10-simple", "model.hidden_units=[64]", "train.track=[]"]
    with recording_stations() as stations:
        sightline.train(str(data), recipe="quick", epochs=1, out=tmp_path / "r", set=settings)

    functions = [name for _, name in stations]
    for name in ("build_index", "build_dataset", "find_leaks", "fit", "collect_outputs", "compute_heat_maps"):
        assert name in functions, "a station of the road is not seen"
    packages = [package for package, _ in groupby(package for package, _ in stations)]
    steps_back = [(a, b) for a, b in pairwise(packages) if LAYER_OF[b] < LAYER_OF[a]]
    assert len(steps_back) <= MAX_STEPS_BACK, f"{packages}: {steps_back}"

    reads = count_opened(data) - written
    images = [str(path) for path in data.rglob("*.png")]
    assert set(reads) >= set(images)
    reread = [path for path in images if reads[path] > READS]
    assert len(reread) <= CANDIDATES_PER_CLASS * len(coffee_beans.CLASSES), "candidates for reference examples alone"
    assert max(reads[path] for path in images) <= READS + 1
    assert len(list(cache.rglob("pixels.npy"))) == 1
