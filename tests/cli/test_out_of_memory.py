"""A file that takes more memory than there is ends in a sentence and no traceback, whatever reads it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import small_bundles
from sightline.inference import bundle
from synthetic_images import encode_png

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="address space is limited as Linux does")

SIZE = 128 << 20  # bytes of each file, most of them a hole
LEFT = 64 << 20  # bytes of address space for the command
RUN = """
import resource, sys
from pathlib import Path
import small_bundles
from sightline import cli
from sightline.cli import doctor, predict
from sightline.inference import stream
from sightline.data import archives
small_bundles.make_bundle(0)  # loads the libraries and their threads
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
cli.main()
"""


def extend(path: Path, start: bytes) -> Path:
    with path.open("wb") as file:
        file.write(start)
        file.truncate(SIZE)
    return path


def make_image(folder: Path) -> list[str]:
    extend(folder / "large.png", encode_png())
    return ["predict", str(folder / "model.zip"), str(folder / "large.png")]


def make_table(folder: Path) -> list[str]:
    return ["doctor", str(extend(folder / "table.csv", b"path,label\na.png,cat\n"))]


def make_archive(folder: Path) -> list[str]:
    large = extend(folder / "large.png", encode_png())
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        archive.write(large, "cat/large.png")
    return ["doctor", str(folder / "images.zip")]


def make_model(folder: Path) -> list[str]:
    (folder / "a.png").write_bytes(encode_png())
    return ["predict", str(extend(folder / "large.onnx", b"\x08\x07")), str(folder / "a.png")]


def run_limited(left: int, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command in a process that may use `left` more bytes of address space than the loaded libraries."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run(
        [sys.executable, "-c", RUN, str(left), *arguments], capture_output=True, text=True, check=False, env=environment
    )


@pytest.mark.parametrize("name", ["model", "model.onnx"])
def test_a_model_takes_no_more_address_space_than_its_files(tmp_path: Path, name: str) -> None:
    """Clusters limit it (`ulimit -v`)."""
    bundle.write(small_bundles.make_bundle(0), tmp_path / name)
    (tmp_path / "a.png").write_bytes(encode_png())
    done = run_limited(1 << 30, ["predict", str(tmp_path / name), str(tmp_path / "a.png")])
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("make", "code"), [(make_image, 1), (make_table, 2), (make_archive, 2), (make_model, 2)])
def test_a_reader_that_runs_out_of_memory_says_so(tmp_path: Path, make: Callable[[Path], list[str]], code: int) -> None:
    """An image among others is a row of its own, after which `predict` exits with 1."""
    bundle.write(small_bundles.make_bundle(0), tmp_path / "model.zip")
    done = run_limited(LEFT, make(tmp_path))
    assert done.returncode == code, done.stderr
    text = done.stdout + done.stderr
    assert "memory" in text
    assert "Traceback" not in text
    assert "Internal error" not in text
