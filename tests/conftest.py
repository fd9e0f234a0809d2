"""Fixtures for all tests; `synthetic_images.py` draws the images."""

from __future__ import annotations

import gc
import importlib.util
import itertools
import os
import sys
import threading
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import settings

from sightline import process
from sightline.data.sources.split_names import SPLIT_NAMES
from synthetic_images import HostileFolder, ImageFolder, draw_classes, draw_hostile

collect_ignore = ["serve/protocol_clients.py"]  # a script for another environment

# Slow machines must not fail tests; tests that need more than 50 examples set their own number.
settings.register_profile("sightline", deadline=None, max_examples=50)
settings.load_profile("sightline")


@pytest.hookimpl(tryfirst=True)  # before `-m "not slow"` deselects items
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark combinations as slow, and run files with few tests first.

    Such files take long, and the last file determines when the second process ends.
    """
    for item in items:
        if isinstance(item, pytest.Function) and (mark := item.get_closest_marker("slow_with")):
            parameters = item.callspec.id if hasattr(item, "callspec") else ""
            if parameters in mark.args:
                item.add_marker("slow")
    counts = Counter(item.path for item in items)
    items.sort(key=lambda item: counts[item.path])


_frozen: list[str] = []


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Disable garbage collection during test collection: all items stay, and scanning them is a third of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_runtest_logfinish() -> None:
    """Freeze the objects from importing Keras, as the command line does, so that full collections do not scan them."""
    if "keras" in sys.modules and not _frozen:
        _frozen.append("keras")
        gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _no_wait_for_the_disk() -> Iterator[None]:
    """Skip waiting for the disk, which a tiny run does 30 times; no test cuts the power, and other processes flush."""

    def check_descriptor(descriptor: int) -> None:
        os.fstat(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", check_descriptor)
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_return_of_memory() -> Iterator[None]:
    """Leave garbage to Python: a tiny run collects it four times, each time scanning all objects of the process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "trim_memory", lambda: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _own_caches(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[None]:
    """Isolate the tests from the user's caches, weights and settings, and vice versa."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIGHTLINE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("KERAS_HOME", str(tmp_path_factory.mktemp("keras")))
        patch.delenv("SIGHTLINE_CACHE_LIMIT", raising=False)
        if importlib.util.find_spec("filelock"):  # tests compile the same programs, some in separate processes
            root = tmp_path_factory.getbasetemp()
            folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "compiled"
            patch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder))
            patch.setenv("JAX_COMPILATION_CACHE_MAX_SIZE", str(4 << 30))
            patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
            if "not slow" in pytestconfig.getoption("markexpr"):
                # Optimizing a program takes longer than running it on a few tiny images; slow tests still optimize.
                patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        yield


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder for a single test."""
    folder = tmp_path / "own cache"
    monkeypatch.setenv("SIGHTLINE_CACHE", str(folder))
    return folder


@pytest.fixture(scope="module")
def plain_figures() -> Iterator[dict[str, Any]]:
    """Build each figure but draw an empty one instead, for modules whose tests do not look at figures."""
    from empty_figures import empty_figures

    with empty_figures() as originals:
        yield originals


@pytest.fixture
def drawn_figures(plain_figures: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw the figures of one test in a module of `plain_figures`."""
    from sightline.report import plotting

    for name, original in plain_figures.items():
        monkeypatch.setattr(plotting, name, original)


@pytest.fixture(scope="session")
def hostile_folder(tmp_path_factory: pytest.TempPathFactory) -> HostileFolder:
    """A small folder of classes with all the flaws of real data; do not modify it."""
    return draw_hostile(tmp_path_factory.mktemp("hostile"))


@pytest.fixture
def image_folder(tmp_path: Path) -> ImageFolder:
    """A function that draws easily separable classes into a new folder.

    ``image_folder({"cat": 8, "dog": 8}, size=32)``, or ``image_folder({"train": {"cat": 8}, "test": {"cat": 2}})``.
    """
    numbers = itertools.count()

    def draw(counts: Mapping[str, int] | Mapping[str, Mapping[str, int]], size: int = 16, kind: str = "png") -> Path:
        root = tmp_path / f"images{next(numbers) or ''}"
        if all(isinstance(value, int) for value in counts.values()):
            draw_classes(root, cast("Mapping[str, int]", counts), size, kind)
        else:
            assert all(split.lower() in SPLIT_NAMES for split in counts)
            for number, (name, classes) in enumerate(cast("Mapping[str, Mapping[str, int]]", counts).items()):
                draw_classes(root / name, classes, size, kind, start=10_000 * number)
        return root

    return draw


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data, which is not part of the project; the test is skipped without it."""
    folder = Path(os.environ.get("SIGHTLINE_SHARED") or Path(__file__).parents[2] / "shared")
    if not (folder / "data").is_dir():
        pytest.skip(f"no real data at {folder}; set SIGHTLINE_SHARED to its path")
    return folder


@pytest.fixture
def claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mark this process as the command line's own, which handles signals."""
    monkeypatch.setattr(process, "_claimed", True)


@pytest.fixture
def no_thread_left() -> Iterator[None]:
    """Fail the test if it leaves a thread running."""
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before
